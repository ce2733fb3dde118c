// Frame -> network input. Reference: snl_runtime.images.preprocess.prepare, first axis first as there.

// Resizes the first axis: frame (height, width, channels) uint8 or uint16 -> rows (out_height, width, 1 or 3) float32, alpha left out.
// One thread per column and output row: neighboring threads read neighboring pixels.
extern "C" __global__ void frame_rows(const unsigned char* __restrict__ frame, long long pitch_bytes, int channels, int is_16_bit, int height,
                                      int width, float* __restrict__ rows, int out_height) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= out_height) {
    return;
  }
  const Window window = axis_window(height, out_height, y);
  const int planes = channels == 1 ? 1 : 3;
  float sums[3] = {0.0f, 0.0f, 0.0f};
  for (int i = 0; i < window.count; ++i) {
    const unsigned char* row = frame + (window.first + i) * pitch_bytes;
    const float share = window_share(window, i);
    for (int plane = 0; plane < 3; ++plane) {  // a fixed bound keeps the sums in registers
      if (plane < planes) {
        sums[plane] += share * (float)pixel_value(row, x * channels + plane, is_16_bit);
      }
    }
  }
  float* target = rows + ((long long)y * width + x) * planes;
  for (int plane = 0; plane < 3; ++plane) {
    if (plane < planes) {
      target[plane] = sums[plane];
    }
  }
}

// Resizes the second axis, rounds once and puts the channels in order: rows (height, width, planes) float32 -> input (height, out_width, 3) uint8 RGB.
// `rounding` is 0.5 and a guard against ties that float sums would decide by their last bit.
extern "C" __global__ void frame_columns(const float* __restrict__ rows, int planes, int is_bgr, int height, int width,
                                         unsigned char* __restrict__ input, int out_width, float rounding) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= out_width || y >= height) {
    return;
  }
  const Window window = axis_window(width, out_width, x);
  const float* source = rows + ((long long)y * width + window.first) * planes;
  float sums[3] = {0.0f, 0.0f, 0.0f};
  for (int i = 0; i < window.count; ++i) {
    const float share = window_share(window, i);
    for (int plane = 0; plane < 3; ++plane) {
      if (plane < planes) {
        sums[plane] += share * source[i * planes + plane];
      }
    }
  }
  unsigned char* target = input + ((long long)y * out_width + x) * 3;
  for (int channel = 0; channel < 3; ++channel) {
    const float sum = planes == 1 ? sums[0] : (is_bgr ? sums[2 - channel] : sums[channel]);
    target[channel] = (unsigned char)(sum + rounding);  // shares sum to 1, so nothing lies outside 0..255
  }
}

// Where view `number` of `count` over an axis begins. Reference: snl_runtime.images.views.Views.grid; ties go to the even number, as Python rounds.
__device__ inline int view_start(int whole, int view, int count, int number) {
  if (count == 1) {
    return 0;
  }
  const long long numerator = (long long)number * (whole - view);
  const long long quotient = numerator / (count - 1);
  const long long twice_rest = 2 * (numerator % (count - 1));
  return (int)(quotient + (twice_rest > count - 1 || (twice_rest == count - 1 && quotient % 2 == 1)));
}

// Cuts views out of a network input larger than the network's: part (height, width, 3) uint8 -> views (gridDim.z, view_height, view_width, 3), those of
// a grid of `rows` times `columns` from view `first` on. Reference: snl_runtime.images.views.Views.cut. One thread per byte of a view's row; `blocks_run`
// counts the blocks, so that the host sees that the kernel ran for all views.
extern "C" __global__ void cut_views(const unsigned char* __restrict__ part, int height, int width, int rows, int columns, int first,
                                     unsigned char* __restrict__ views, int view_height, int view_width, unsigned int* __restrict__ blocks_run) {
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    atomicAdd(blocks_run, 1u);
  }
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= 3 * view_width || y >= view_height) {
    return;
  }
  const int number = first + blockIdx.z;
  const long long top = view_start(height, view_height, rows, number / columns);
  const int left = view_start(width, view_width, columns, number % columns);
  views[((long long)blockIdx.z * view_height + y) * view_width * 3 + x] = part[((top + y) * width + left) * 3 + x];
}

// Reference: snl_runtime.verdict.frame_checks.frame_statistics, as whole numbers: sums[0..2] of the channels, [3..5] of their squares, [6] white, [7] black,
// [8] reddish, [9] bluish, [10] red, [11] blue and [12] all pixels, which shows that every one was counted. `sums` must be cleared before. Any grid
// of one dimension will do.
extern "C" __global__ void input_sums(const unsigned char* __restrict__ input, int pixels, int white_level, int black_level, int tint_level,
                                      int color_level, unsigned long long* __restrict__ sums) {
  __shared__ unsigned long long block_sums[13];
  if (threadIdx.x < 13) {
    block_sums[threadIdx.x] = 0;
  }
  __syncthreads();
  unsigned long long own[13] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < pixels; i += gridDim.x * blockDim.x) {
    int lowest = 255;
    int highest = 0;
    for (int channel = 0; channel < 3; ++channel) {
      const int value = input[i * 3LL + channel];
      own[channel] += value;
      own[3 + channel] += value * value;
      lowest = value < lowest ? value : lowest;
      highest = value > highest ? value : highest;
    }
    own[6] += lowest >= white_level;
    own[7] += highest <= black_level;
    const int redder = (int)input[i * 3LL] - (int)input[i * 3LL + 2];
    own[8] += redder >= tint_level;
    own[9] += -redder >= tint_level;
    own[10] += redder >= color_level;
    own[11] += -redder >= color_level;
    ++own[12];
  }
  for (int k = 0; k < 13; ++k) {
    atomicAdd(&block_sums[k], own[k]);
  }
  __syncthreads();
  if (threadIdx.x < 13) {
    atomicAdd(&sums[threadIdx.x], block_sums[threadIdx.x]);
  }
}
