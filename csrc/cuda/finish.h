// The second stage of a sum: what blocks of threads left behind, added in fp64 and in fixed order; no atomics.
#pragma once

#include <algorithm>

#include "divider.h"
#include "launch.h"
#include "sums.h"

namespace fastqat {

constexpr int kFinishThreads = 128;

// out[row] = the sum of `terms` partials, at least `least`: a warp per row.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const float* partials, float* out, int64_t rows, int64_t terms, float least, int64_t first) {
  const int64_t row = (first + blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  double total = 0;
  for (int64_t term = threadIdx.x % 32; term < terms && row < rows; term += 32) total += partials[row * terms + term];
  total = sum_lanes<kThreads>(total, 32);
  if (threadIdx.x % 32 == 0 && row < rows) out[row] = total < least ? least : static_cast<float>(total);
}

// out [rows] from partials [rows, ...], `count` in all.
inline void finish(const float* partials, float* out, int64_t rows, int64_t count, float least, cudaStream_t stream) {
  const int64_t terms = count / std::max<int64_t>(1, rows);
  launch_blocks(finish_kernel<kFinishThreads>, divide_up(rows, kFinishThreads / 32), kFinishThreads, stream, partials, out, rows, terms,
                least);
}

}  // namespace fastqat
