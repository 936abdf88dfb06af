// float, bf16 and fp16 storage behind one interface: 32-bit words of one float or two halves, so that every loop works on 32-bit lanes
// and needs no packing across them. Plain integer and float code, so that every instruction set gives the same bits; rounding is half
// to even.
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

FASTQAT_INLINE float widen(float x) { return x; }
FASTQAT_INLINE float widen(bf16 h) { return from_bits(uint32_t{h.bits} << 16); }

// Exponent and fraction are moved into place and rescaled by 2^112; infinity and NaN get the full fp32 exponent.
FASTQAT_INLINE float widen_fp16(uint32_t h) {
  const uint32_t magnitude = (h & 0x7fffu) << 13;
  const uint32_t finite = to_bits(from_bits(magnitude) * 0x1p112f);
  const uint32_t value = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite;
  return from_bits(value | (h & 0x8000u) << 16);
}
FASTQAT_INLINE float widen(fp16 h) { return widen_fp16(h.bits); }

// The bf16 bits lie in the upper half. A NaN stays one, since every NaN that gets here has a lower half of zeros: it comes from a bf16,
// from an operation that makes one, or from a scale as read_parameter() gives it.
FASTQAT_INLINE uint32_t round_bf16(float f) {
  const uint32_t u = to_bits(f);
  return u + 0x7fffu + ((u >> 16) & 1u);
}

// Below 2^-14 adding 0.5 makes the fp32 adder round at 2^-24, the fp16 denormal step.
FASTQAT_INLINE uint32_t narrow_fp16(float f) {
  const uint32_t u = to_bits(f);
  const uint32_t a = u & 0x7fffffffu;
  const uint32_t denormal = to_bits(from_bits(a) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t finite = a < 0x38800000u ? denormal : normal;
  const uint32_t limited = a >= 0x477ff000u ? 0x7c00u : finite;
  const uint32_t value = a > 0x7f800000u ? 0x7e00u : limited;
  return value | (u >> 16 & 0x8000u);
}

// What a word holds: `kPerWord` elements, the first one in the lower half. join_exact: of values that need no rounding.
template <class T>
struct Packing;

template <>
struct Packing<float> {
  static constexpr int kPerWord = 1;
  FASTQAT_INLINE static float low(uint32_t w) { return from_bits(w); }
  FASTQAT_INLINE static float high(uint32_t) { return 0; }
  FASTQAT_INLINE static uint32_t join(float low, float) { return to_bits(low); }
  FASTQAT_INLINE static uint32_t join_exact(float low, float) { return to_bits(low); }
};

template <>
struct Packing<bf16> {
  static constexpr int kPerWord = 2;
  FASTQAT_INLINE static float low(uint32_t w) { return from_bits(w << 16); }
  FASTQAT_INLINE static float high(uint32_t w) { return from_bits(w & 0xffff0000u); }
  FASTQAT_INLINE static uint32_t join(float low, float high) { return round_bf16(low) >> 16 | (round_bf16(high) & 0xffff0000u); }
  FASTQAT_INLINE static uint32_t join_exact(float low, float high) { return to_bits(low) >> 16 | to_bits(high); }
};

template <>
struct Packing<fp16> {
  static constexpr int kPerWord = 2;
  FASTQAT_INLINE static float low(uint32_t w) { return widen_fp16(w & 0xffffu); }
  FASTQAT_INLINE static float high(uint32_t w) { return widen_fp16(w >> 16); }
  FASTQAT_INLINE static uint32_t join(float low, float high) { return narrow_fp16(low) | narrow_fp16(high) << 16; }
  FASTQAT_INLINE static uint32_t join_exact(float low, float high) { return join(low, high); }
};

// Words lie anywhere an element may lie; std::memcpy makes that, and the other type, well defined.
FASTQAT_INLINE uint32_t load_word(const void* words, int64_t i) {
  uint32_t w;
  std::memcpy(&w, static_cast<const char*>(words) + 4 * i, 4);
  return w;
}
FASTQAT_INLINE void store_word(void* words, int64_t i, uint32_t w) { std::memcpy(static_cast<char*>(words) + 4 * i, &w, 4); }

// The last element of an odd number of halves, as the lower half of a word.
FASTQAT_INLINE uint32_t load_half(const void* words, int64_t i) {
  uint16_t h;
  std::memcpy(&h, static_cast<const char*>(words) + 4 * i, 2);
  return h;
}
FASTQAT_INLINE void store_half(void* words, int64_t i, uint32_t w) {
  const auto h = static_cast<uint16_t>(w);
  std::memcpy(static_cast<char*>(words) + 4 * i, &h, 2);
}

// n <= kBlock unless T is float, whose data are used where they lie.
template <class T>
FASTQAT_INLINE const float* load_block(const T* x, int64_t n, float* scratch) {
  for (int64_t i = 0; i < n; ++i) scratch[i] = widen(x[i]);
  return scratch;
}
FASTQAT_INLINE const float* load_block(const float* x, int64_t, float*) { return x; }

}  // namespace fastqat
