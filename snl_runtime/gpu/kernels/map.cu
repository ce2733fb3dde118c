// Normalized map: one product per cell, rounded once as on the host. Reference: snl_runtime.model.normalization.NormalizationMap.apply.
extern "C" __global__ void normalization_cells(const float* __restrict__ map, const float* __restrict__ normalization, int cells, float* __restrict__ normalized) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < cells) {
    normalized[i] = map[i] * normalization[i];
  }
}

// Anomaly map -> frame (or ROI) resolution. Reference: snl_runtime.images.upsampling.upsample_map and snl_runtime.images.overlay.blend_heat.

__device__ inline float resized_value(const float* map, int map_width, const Window& rows, const Window& columns) {
  float value = 0.0f;
  for (int j = 0; j < columns.count; ++j) {
    float column = 0.0f;
    for (int i = 0; i < rows.count; ++i) {
      column += window_share(rows, i) * map[(rows.first + i) * map_width + columns.first + j];
    }
    value += window_share(columns, j) * column;
  }
  return value;
}

// Writes whichever of the three outputs is not null:
//   frame_map (height, width) float32;
//   mask (height, ceil(width / 32)) uint32: bit i of word k says whether pixel 32 k + i is above the threshold;
//   overlay (height, width, 3) uint8 RGB: the frame with the heat map blended over it.
// blocks_run, unless null, counts the blocks, so that the host sees that the kernel ran for all of the frame.
// heat_table holds four rows of 2 * heat_steps + 1 values: what a step of heat adds to red, green and blue, rounding included, and the share of the
// frame it keeps. A threshold that is not positive and finite leaves the frame as it is. blockDim.x must be 32: a warp makes a word of the mask.
extern "C" __global__ void map_to_frame(const float* __restrict__ map, int map_height, int map_width, int height, int width, float threshold,
                                        float* __restrict__ frame_map, unsigned int* __restrict__ mask, unsigned char* __restrict__ overlay,
                                        const unsigned char* __restrict__ frame, long long pitch_bytes, int channels, int is_16_bit, int is_bgr,
                                        const float* __restrict__ heat_table, int heat_steps, unsigned int* __restrict__ blocks_run) {
  if (blocks_run != nullptr && threadIdx.x == 0 && threadIdx.y == 0) {
    atomicAdd(blocks_run, 1u);
  }
  const int x = blockIdx.x * 32 + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  const bool is_inside = x < width && y < height;
  float value = 0.0f;
  if (is_inside) {
    value = resized_value(map, map_width, axis_window(map_height, height, y), axis_window(map_width, width, x));
  }
  if (mask != nullptr) {
    const unsigned int word = __ballot_sync(0xFFFFFFFFu, is_inside && value > threshold);
    if (threadIdx.x == 0 && y < height) {
      mask[(long long)y * ((width + 31) / 32) + blockIdx.x] = word;
    }
  }
  if (!is_inside) {
    return;
  }
  const long long index = (long long)y * width + x;
  if (frame_map != nullptr) {
    frame_map[index] = value;
  }
  if (overlay == nullptr) {
    return;
  }
  const bool has_heat = threshold > 0.0f && is_finite(threshold);
  // fmaxf returns its number if the other argument is NaN, so no value can index outside the table.
  const int step = has_heat ? (int)fminf(fmaxf(value / threshold * heat_steps + 0.5f, 0.0f), 2.0f * heat_steps) : 0;
  const int steps = 2 * heat_steps + 1;
  const unsigned char* row = frame + y * pitch_bytes;
  for (int channel = 0; channel < 3; ++channel) {
    const int plane = channels == 1 ? 0 : (is_bgr ? 2 - channel : channel);
    const int pixel = pixel_value(row, x * channels + plane, is_16_bit);
    const float blended = has_heat ? pixel * heat_table[3 * steps + step] + heat_table[channel * steps + step] : (float)pixel;
    overlay[index * 3 + channel] = (unsigned char)blended;
  }
}
