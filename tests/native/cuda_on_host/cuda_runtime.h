// Stands in for the CUDA headers, so that g++ compiles the kernels of csrc/cuda and runs them on the CPU: blocks one after another, the
// threads of a block as fibers that take turns at barriers. It shows wrong indexing, wrong sums and misplaced barriers, not speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block at a time

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx;

namespace host {

enum class Wait { none, block, shuffle };

// Entered once by setcontext, then switched by _longjmp, which makes no system call, and used again by every block.
struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  Wait wait = Wait::none;
  bool started = false, done = false;
};

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline bool backwards = false;  // the order in which threads take turns must not matter
inline uint64_t exchange[1024];
inline int64_t launches = 0;

inline void fail(const char* what) {
  std::fprintf(stderr, "block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  std::abort();
}

inline void yield() {
  if (_setjmp(fibers[threadIdx.x].resume) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
  for (;;) {
    body();
    fibers[threadIdx.x].done = true;
    yield();
  }
}

inline void wait(Wait kind) {
  fibers[threadIdx.x].wait = kind;
  yield();
}

inline void resume(unsigned thread) {
  threadIdx.x = thread;
  if (_setjmp(scheduler) != 0) return;
  Fiber& fiber = fibers[thread];
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  makecontext(&fiber.context, enter, 0);
  setcontext(&fiber.context);
}

// Lets every thread run to its next barrier; those that are left must all have come to the same kind.
inline bool turn(unsigned threads) {
  Wait kind = Wait::none;
  for (unsigned n = 0; n < threads; ++n) {
    const unsigned thread = backwards ? threads - 1 - n : n;
    if (fibers[thread].done) continue;
    resume(thread);
    if (fibers[thread].done) continue;
    if (kind != Wait::none && fibers[thread].wait != kind) fail("waits at another barrier than the rest of its block");
    kind = fibers[thread].wait;
  }
  if (kind == Wait::shuffle)
    for (unsigned t = 0; t < threads; ++t)
      if (fibers[t].done != fibers[t / 32 * 32].done) fail("a shuffle with threads that have left");
  return kind != Wait::none;
}

inline void run_block(unsigned threads) {
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  for (unsigned t = 0; t < threads; ++t) fibers[t].done = false;
  while (turn(threads)) {
  }
}

}  // namespace host

inline void __syncthreads() { host::wait(host::Wait::block); }

// What any thread of the block gave; `value` in a word of its own.
template <class T, class Read>
auto exchanged(T value, const Read& read) {
  static_assert(sizeof value <= sizeof host::exchange[0]);
  std::memcpy(&host::exchange[threadIdx.x], &value, sizeof value);
  host::wait(host::Wait::shuffle);
  const auto result = read([](unsigned thread) {
    T other;
    std::memcpy(&other, &host::exchange[thread], sizeof other);
    return other;
  });
  host::wait(host::Wait::shuffle);
  return result;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  const unsigned thread = threadIdx.x ^ static_cast<unsigned>(offset);
  return exchanged(value, [&](const auto& of) { return of(thread); });
}

inline bool __any_sync(unsigned, bool value) {
  return exchanged(value, [](const auto& of) {
    bool any = false;
    for (unsigned lane = 0; lane < 32; ++lane) any |= of(threadIdx.x / 32 * 32 + lane);
    return any;
  });
}

template <class Word>
void __stwb(Word* to, Word value) {
  *to = value;
}

inline float __expf(float x) { return std::exp2(x * 1.44269504f); }  // with the rounding that a GPU's has
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024) return cudaErrorInvalidConfiguration;
  ++host::launches;
  host::body = [&] { kernel(arguments...); };
  for (unsigned n = 0; n < config->gridDim.x; ++n) {
    blockIdx.x = host::backwards ? config->gridDim.x - 1 - n : n;
    host::run_block(config->blockDim.x);
  }
  return cudaSuccess;
}
