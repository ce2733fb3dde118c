// Kernels of snl-edge. The files of this folder are joined to one translation unit, which includes nothing, so that NVRTC needs no header.
// Every one has a reference in NumPy, named above it, which is the specification; the tests run this very text on the CPU against it.

// What one output cell takes from an axis: `count` neighboring input cells from `first` on, with shares that sum to 1.
struct Window {
  int first;
  int count;
  float first_share;
  float inner_share;
  float last_share;
};

// Reference: snl_runtime.images.preprocess.axis_weights. Area average where the axis shrinks, linear between half-pixel centers where it grows.
__device__ inline Window axis_window(int n_in, int n_out, int index) {
  Window window;
  if (n_out < n_in) {
    // In units of 1 / n_out input cells both grids have whole-numbered edges, so the overlaps are exact.
    const long long start = (long long)index * n_in;
    const long long end = start + n_in;
    window.first = (int)(start / n_out);
    window.count = (int)((end + n_out - 1) / n_out) - window.first;
    window.first_share = (float)((window.first + 1LL) * n_out - start) / (float)n_in;
    window.inner_share = (float)n_out / (float)n_in;
    window.last_share = (float)(end - (window.first + window.count - 1LL) * n_out) / (float)n_in;
    return window;
  }
  const long long denominator = 2LL * n_out;
  long long numerator = (2LL * index + 1) * n_in - n_out;  // of the position (index + 0.5) * n_in / n_out - 0.5
  const long long last = (n_in - 1) * denominator;
  numerator = numerator < 0 ? 0 : (numerator > last ? last : numerator);
  window.first = (int)(numerator / denominator);
  const long long rest = numerator - window.first * denominator;
  window.count = rest > 0 ? 2 : 1;
  window.first_share = (float)(denominator - rest) / (float)denominator;
  window.inner_share = 0.0f;
  window.last_share = (float)rest / (float)denominator;
  return window;
}

__device__ inline float window_share(const Window& window, int index) {
  if (index == 0) {
    return window.first_share;
  }
  return index == window.count - 1 ? window.last_share : window.inner_share;
}

// One channel of one pixel as 8 bits; 16 bits become round(v / 257), whose ties cannot occur because 257 is odd.
__device__ inline int pixel_value(const unsigned char* row, int index, int is_16_bit) {
  if (is_16_bit) {
    return (int)((((const unsigned short*)row)[index] + 128u) / 257u);
  }
  return row[index];
}

// Floats as integers in the same order, all above 0, so that cleared memory means "nothing yet" and atomicMax works on them.
__device__ inline unsigned int ordered_key(float value) {
  const unsigned int bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float ordered_value(unsigned int key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

__device__ inline bool is_finite(float value) {
  return (__float_as_uint(value) & 0x7F800000u) != 0x7F800000u;
}
