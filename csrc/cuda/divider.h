// Division by a number that is known when a kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastqat {

// n / d for 0 <= n < 2^62 by one multiplication: magic = floor(2^(62 + shift) / d) + 1 with 2^shift >= d is exact there.
struct Divider {
  int64_t d = 1;
  uint64_t magic = (uint64_t{1} << 62) + 1;
  int shift = 0;

  Divider() = default;
  explicit Divider(int64_t divisor) : d(divisor) {
    while ((int64_t{1} << shift) < d) ++shift;
    magic = static_cast<uint64_t>(((static_cast<unsigned __int128>(1) << (62 + shift)) / static_cast<uint64_t>(d)) + 1);
  }
  __device__ __forceinline__ int64_t divide(int64_t n) const {
    return static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n) << 2, magic) >> shift);
  }
  // n becomes the remainder.
  __device__ __forceinline__ int64_t split(int64_t& n) const {
    const int64_t q = divide(n);
    n -= q * d;
    return q;
  }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastqat
