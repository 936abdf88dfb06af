// One value from those of the threads of a block, in fixed order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastqat {

__device__ __forceinline__ float from_lane(float value, int offset) { return __shfl_xor_sync(0xffffffffu, value, offset); }
__device__ __forceinline__ double from_lane(double value, int offset) { return __shfl_xor_sync(0xffffffffu, value, offset); }
__device__ __forceinline__ int64_t from_lane(int64_t value, int offset) {
  return static_cast<int64_t>(__shfl_xor_sync(0xffffffffu, static_cast<long long>(value), offset));
}

// `join`, which has no order, over groups of `lanes` threads, a power of two up to a warp or the whole block: a butterfly in each warp,
// then warp after warp. All threads of a group get the same.
template <int kThreads, class T, class Join>
__device__ __forceinline__ T fold_lanes(T value, int lanes, const Join& join) {
  __shared__ T warps[kThreads / 32];
  const int width = lanes < 32 ? lanes : 32;
  for (int offset = width / 2; offset > 0; offset /= 2) value = join(value, from_lane(value, offset));
  if (lanes <= 32) return value;
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  T total = warps[0];
#pragma unroll 1
  for (int w = 1; w < kThreads / 32; ++w) total = join(total, warps[w]);
  return total;
}

template <int kThreads>
__device__ __forceinline__ double sum_lanes(double value, int lanes = kThreads) {
  return fold_lanes<kThreads>(value, lanes, [](double a, double b) { return a + b; });
}

// Several sums at a time.
template <int kCount>
struct Sums {
  double at[kCount];
};

template <int kCount>
__device__ __forceinline__ Sums<kCount> from_lane(const Sums<kCount>& sums, int offset) {
  Sums<kCount> other;
#pragma unroll
  for (int s = 0; s < kCount; ++s) other.at[s] = from_lane(sums.at[s], offset);
  return other;
}

template <int kThreads, int kCount>
__device__ __forceinline__ Sums<kCount> sum_lanes(const Sums<kCount>& sums, int lanes) {
  return fold_lanes<kThreads>(sums, lanes, [](Sums<kCount> a, const Sums<kCount>& b) {
#pragma unroll
    for (int s = 0; s < kCount; ++s) a.at[s] += b.at[s];
    return a;
  });
}

}  // namespace fastqat
