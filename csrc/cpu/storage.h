// float, bf16 and fp16 storage behind one block interface: widen a block to fp32, compute, narrow it once. Plain integer and
// float code, so that every instruction set gives the same bits; rounding is half to even.
#pragma once

#include <cstring>

#include "../common.h"
#include "../fake_quant.h"

namespace fastqat {

constexpr int kBlock = 1024;  // elements of one fp32 scratch block (4 KiB, stays in the first-level cache)

FASTQAT_INLINE uint32_t to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

FASTQAT_INLINE float from_bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

FASTQAT_INLINE float widen(bf16 h) { return from_bits(uint32_t{h.bits} << 16); }

// Exponent and fraction are moved into place and rescaled by 2^112; infinity and NaN get the full fp32 exponent.
FASTQAT_INLINE float widen(fp16 h) {
  const uint32_t magnitude = uint32_t{h.bits & 0x7fffu} << 13;
  const uint32_t finite = to_bits(from_bits(magnitude) * 0x1p112f);
  const uint32_t value = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite;
  return from_bits(value | uint32_t{h.bits & 0x8000u} << 16);
}

FASTQAT_INLINE void narrow(float f, bf16* out) {
  const uint32_t u = to_bits(f);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Below 2^-14 adding 0.5 makes the fp32 adder round at 2^-24, the fp16 denormal step.
FASTQAT_INLINE void narrow(float f, fp16* out) {
  const uint32_t u = to_bits(f);
  const uint32_t a = u & 0x7fffffffu;
  const uint32_t denormal = to_bits(from_bits(a) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t finite = a < 0x38800000u ? denormal : normal;
  const uint32_t limited = a >= 0x477ff000u ? 0x7c00u : finite;
  const uint32_t value = a > 0x7f800000u ? 0x7e00u : limited;
  out->bits = static_cast<uint16_t>(value | (u >> 16 & 0x8000u));
}

// n <= kBlock unless T is float, whose data are used where they lie.
template <class T>
FASTQAT_INLINE const float* load_block(const T* x, int64_t n, float* scratch) {
  for (int64_t i = 0; i < n; ++i) scratch[i] = widen(x[i]);
  return scratch;
}
FASTQAT_INLINE const float* load_block(const float* x, int64_t, float*) { return x; }

template <class T>
FASTQAT_INLINE float* output_block(T*, float* scratch) {
  return scratch;
}
FASTQAT_INLINE float* output_block(float* out, float*) { return out; }

template <class T>
FASTQAT_INLINE void store_block(T* out, int64_t n, const float* scratch) {
  for (int64_t i = 0; i < n; ++i) narrow(scratch[i], out + i);
}
FASTQAT_INLINE void store_block(float*, int64_t, const float*) {}

}  // namespace fastqat
