// Runs CUDA kernels of one translation unit on the CPU: every thread of a block is a fiber, so that barriers and warp votes really wait.
// With a seed, blocks and threads run in random order and a fiber may be set aside at every atomic, which shakes out dependence on the order.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__ static
#define __shared__ static
using std::max;
using std::min;

struct Index3 {
  unsigned int x, y, z;
};
static Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {

enum class State { ready, waiting, done };

struct Fiber {
  ucontext_t context;
  Index3 index;
  State state;
  std::unique_ptr<char[]> stack;
};

constexpr std::size_t stack_bytes = 64 * 1024;
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static Fiber* current = nullptr;
static std::mt19937 random_order;
static bool is_shuffled = false;
static std::vector<int> votes;
static void (*body)(void**) = nullptr;
static void** body_arguments = nullptr;

inline void leave(State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
  threadIdx = current->index;
}

inline void maybe_leave() {
  if (is_shuffled && random_order() % 4 == 0) {
    leave(State::ready);
  }
}

inline void run_body() {
  body(body_arguments);
  current->state = State::done;
}

inline void start(Fiber& fiber) {
  if (!fiber.stack) {
    fiber.stack.reset(new char[stack_bytes]);
  }
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = &scheduler;
  fiber.state = State::ready;
  makecontext(&fiber.context, run_body, 0);
}

// Returns false if some threads of the block wait at a barrier that others never reach.
inline bool run_block() {
  std::vector<Fiber*> ready;
  for (Fiber& fiber : fibers) {
    start(fiber);
    ready.push_back(&fiber);
  }
  while (!ready.empty()) {
    while (!ready.empty()) {
      const std::size_t chosen = is_shuffled ? random_order() % ready.size() : 0;
      current = ready[chosen];
      threadIdx = current->index;
      swapcontext(&scheduler, &current->context);
      if (current->state != State::ready) {
        ready.erase(ready.begin() + chosen);
      }
    }
    std::size_t done = 0;
    for (Fiber& fiber : fibers) {
      done += fiber.state == State::done;
    }
    if (done == fibers.size()) {
      return true;
    }
    if (done != 0) {
      return false;
    }
    for (Fiber& fiber : fibers) {
      fiber.state = State::ready;
      ready.push_back(&fiber);
    }
  }
  return true;
}

inline int run_grid(const unsigned int* grid, const unsigned int* block, unsigned int seed) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  is_shuffled = seed != 0;
  random_order.seed(seed);
  fibers = std::vector<Fiber>(std::size_t(block[0]) * block[1] * block[2]);
  votes.assign(fibers.size(), 0);
  for (unsigned int i = 0; i < fibers.size(); ++i) {
    fibers[i].index = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
  }
  std::vector<Index3> blocks;
  for (unsigned int z = 0; z < grid[2]; ++z) {
    for (unsigned int y = 0; y < grid[1]; ++y) {
      for (unsigned int x = 0; x < grid[0]; ++x) {
        blocks.push_back({x, y, z});
      }
    }
  }
  if (is_shuffled) {
    std::shuffle(blocks.begin(), blocks.end(), random_order);
  }
  for (const Index3& index : blocks) {
    blockIdx = index;
    if (!run_block()) {
      return 1;
    }
  }
  return 0;
}

template <class... Arguments, std::size_t... I>
void call(void (*kernel)(Arguments...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<Arguments*>(values[I])...);
}

template <auto kernel>
struct Launcher;

template <class... Arguments, void (*kernel)(Arguments...)>
struct Launcher<kernel> {
  static void invoke(void** values) { call(kernel, values, std::index_sequence_for<Arguments...>{}); }
  static constexpr int argument_count = sizeof...(Arguments);
};

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::leave(on_cpu::State::waiting); }

// Every thread of the block must vote, which is stricter than CUDA; a block's rows must be whole warps.
inline unsigned int __ballot_sync(unsigned int, bool predicate) {
  const unsigned int own = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  on_cpu::votes[own] = predicate;
  __syncthreads();
  unsigned int word = 0;
  for (unsigned int lane = 0; lane < 32; ++lane) {
    word |= static_cast<unsigned int>(on_cpu::votes[own / 32 * 32 + lane]) << lane;
  }
  __syncthreads();
  return word;
}

template <class T, class Operation>
T atomically(T* target, Operation operation) {
  on_cpu::maybe_leave();
  const T earlier = *target;
  *target = operation(earlier);
  on_cpu::maybe_leave();
  return earlier;
}
template <class T>
T atomicAdd(T* target, T value) {
  return atomically(target, [=](T earlier) { return earlier + value; });
}
template <class T>
T atomicMax(T* target, T value) {
  return atomically(target, [=](T earlier) { return max(earlier, value); });
}
template <class T>
T atomicMin(T* target, T value) {
  return atomically(target, [=](T earlier) { return min(earlier, value); });
}

inline unsigned int __float_as_uint(float value) {
  unsigned int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// For each kernel: run it, and say how many arguments it declares.
#define EXPORT_KERNEL(name)                                                                                                                \
  extern "C" int run_##name(const unsigned int* grid, const unsigned int* block, unsigned int seed, void** values) {                      \
    on_cpu::body = &on_cpu::Launcher<&name>::invoke;                                                                                       \
    on_cpu::body_arguments = values;                                                                                                       \
    return on_cpu::run_grid(grid, block, seed);                                                                                            \
  }                                                                                                                                        \
  extern "C" int count_##name() { return on_cpu::Launcher<&name>::argument_count; }
