// Sums over the threads of a block: fp64, in fixed order.
#pragma once

#include <cuda_runtime.h>

namespace fastqat {

// The sum over groups of `lanes` threads, a power of two up to a warp or the whole block, in the first thread of each: a butterfly in
// each warp, then warp after warp.
template <int kThreads>
__device__ __forceinline__ double sum_lanes(double value, int lanes = kThreads) {
  __shared__ double warps[kThreads / 32];
  const int width = lanes < 32 ? lanes : 32;
  for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (lanes <= 32) return value;
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += warps[w];
  return total;
}

}  // namespace fastqat
