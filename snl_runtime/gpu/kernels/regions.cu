// Checks and regions at the resolution of the map, so that a map whose maximum is above the threshold always has a region.
// Reference: snl_runtime.verdict.decision.check_output and snl_runtime.verdict.regions.find_regions.

// statistics[0] key of the largest finite value, [1] count of values that are not finite, [2] count above the threshold,
// [3] count of all cells, which shows that every one was looked at. Must be cleared before. Any grid of one dimension will do.
extern "C" __global__ void map_statistics(const float* __restrict__ map, int cells, float threshold,
                                          unsigned int* __restrict__ statistics) {
  __shared__ unsigned int block_values[4];
  if (threadIdx.x < 4) {
    block_values[threadIdx.x] = 0;
  }
  __syncthreads();
  unsigned int peak_key = 0;
  unsigned int counts[3] = {0, 0, 0};
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < cells; i += gridDim.x * blockDim.x) {
    const float value = map[i];
    if (is_finite(value)) {
      peak_key = max(peak_key, ordered_key(value));
      counts[1] += value > threshold;
    } else {
      ++counts[0];
    }
    ++counts[2];
  }
  atomicMax(&block_values[0], peak_key);
  for (int k = 0; k < 3; ++k) {
    atomicAdd(&block_values[1 + k], counts[k]);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicMax(&statistics[0], block_values[0]);
  } else if (threadIdx.x < 4) {
    atomicAdd(&statistics[threadIdx.x], block_values[threadIdx.x]);
  }
}

// The value that cells of a region exceed. The score may exceed the maximum of the map by a rounding; what is not passed must still point somewhere.
// score_threshold is the pass threshold rounded down, so that comparing with it means the same as in double precision.
__device__ inline float region_cutoff(float threshold, float score, float score_threshold, unsigned int peak_key) {
  const float peak = ordered_value(peak_key);
  if (peak_key == 0 || !(score > score_threshold || peak > score_threshold)) {
    return threshold;
  }
  const unsigned int below = peak_key == 0x80000000u ? 0x7FFFFFFEu : peak_key - 1;  // 0 and -0 are the same number with two keys
  return fminf(threshold, ordered_value(below));
}

// labels (height, width): a cell of a region points to a cell with a lower index of the same region, its root to itself; -1 outside.
extern "C" __global__ void label_cells(const float* __restrict__ map, int cells, float threshold, const float* __restrict__ score,
                                       float score_threshold, const unsigned int* __restrict__ statistics, int* __restrict__ labels) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < cells) {
    labels[i] = map[i] > region_cutoff(threshold, *score, score_threshold, statistics[0]) ? i : -1;
  }
}

__device__ inline int find_root(const volatile int* labels, int cell) {
  int parent = labels[cell];
  while (parent != cell) {
    cell = parent;
    parent = labels[cell];
  }
  return cell;
}

// Lock-free union: links the root with the higher index to the other one; if somebody else linked it meanwhile, joins that one as well.
__device__ inline void join_regions(int* labels, int a, int b) {
  while (true) {
    a = find_root(labels, a);
    b = find_root(labels, b);
    if (a == b) {
      return;
    }
    const int higher = max(a, b);
    const int lower = min(a, b);
    const int earlier = atomicMin(&labels[higher], lower);
    if (earlier == higher) {
      return;
    }
    a = earlier;
    b = lower;
  }
}

// Joins each cell with its neighbors above and to the left. Neighbors that touch each other join themselves, so one of them is enough.
extern "C" __global__ void join_cells(int height, int width, int* labels) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= height * width || labels[i] < 0) {
    return;
  }
  const int x = i % width;
  const bool has_above = i >= width;
  if (has_above && labels[i - width] >= 0) {
    join_regions(labels, i, i - width);
    return;
  }
  if (has_above && x + 1 < width && labels[i - width + 1] >= 0) {
    join_regions(labels, i, i - width + 1);
  }
  if (x > 0 && labels[i - 1] >= 0) {
    join_regions(labels, i, i - 1);
  } else if (has_above && x > 0 && labels[i - width - 1] >= 0) {
    join_regions(labels, i, i - width - 1);
  }
}

// Gives every region a number, in no order; region_count may exceed what the table of records holds.
extern "C" __global__ void number_regions(int cells, const int* __restrict__ labels, int* __restrict__ numbers,
                                          unsigned int* __restrict__ region_count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < cells && labels[i] == i) {
    numbers[i] = (int)atomicAdd(region_count, 1u);
  }
}

// Most cells of a large region change nothing, and reading is much cheaper than an atomic on one address; a stale value only costs an atomic.
__device__ inline void raise_to(unsigned int* target, unsigned int value) {
  if (*(volatile unsigned int*)target < value) {
    atomicMax(target, value);
  }
}

// records (capacity, 8): [0] key of the peak, [1] cells, [2] right, [3] bottom, [4] width - left, [5] height - top; the rest unused.
// They must be cleared before and only grow, hence width - left instead of left.
extern "C" __global__ void measure_regions(const float* __restrict__ map, int height, int width, const int* __restrict__ labels,
                                           const int* __restrict__ numbers, unsigned int* __restrict__ records, int capacity) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= height * width || labels[i] < 0) {
    return;
  }
  const int number = numbers[find_root(labels, i)];
  if (number >= capacity) {
    return;
  }
  unsigned int* record = records + number * 8LL;
  const int x = i % width;
  const int y = i / width;
  raise_to(&record[0], ordered_key(map[i]));
  atomicAdd(&record[1], 1u);
  raise_to(&record[2], (unsigned int)(x + 1));
  raise_to(&record[3], (unsigned int)(y + 1));
  raise_to(&record[4], (unsigned int)(width - x));
  raise_to(&record[5], (unsigned int)(height - y));
}
