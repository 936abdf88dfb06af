// kLanes floats as vectors of W, for sums that stay in registers: of plain loops GCC keeps them in memory.
#pragma once

#include <cstring>

#include "storage.h"

namespace fastqat {

// W neighbours at any address, the widest vector of a level.
template <int W>
struct Vector {
  typedef float Floats __attribute__((vector_size(W * sizeof(float)), aligned(sizeof(float)), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(W * sizeof(uint32_t))));
  typedef uint16_t Halves __attribute__((vector_size(W * sizeof(uint16_t)), aligned(sizeof(uint16_t)), may_alias));
};

// kLanes floats. Arguments are references: how vectors are passed by value depends on the instruction set.
template <int W>
struct Lanes {
  using Floats = typename Vector<W>::Floats;
  using Bits = typename Vector<W>::Bits;
  static constexpr int kParts = kLanes / W;
  Floats parts[kParts];

  FASTQAT_INLINE static const Floats& at(const float* x, int p) { return reinterpret_cast<const Floats*>(x)[p]; }
  FASTQAT_INLINE void fill(float value) {
    for (int p = 0; p < kParts; ++p) parts[p] = Floats{} + value;
  }
  FASTQAT_INLINE void clear() { fill(0.0f); }
  FASTQAT_INLINE void store(float* x) const { std::memcpy(x, parts, sizeof parts); }
  FASTQAT_INLINE void add(const float* x) {
    for (int p = 0; p < kParts; ++p) parts[p] += at(x, p);
  }
  FASTQAT_INLINE void add(const Lanes& x) {
    for (int p = 0; p < kParts; ++p) parts[p] += x.parts[p];
  }
  FASTQAT_INLINE void raise_to(const float* x) {
    for (int p = 0; p < kParts; ++p) parts[p] = at(x, p) > parts[p] ? at(x, p) : parts[p];
  }
  FASTQAT_INLINE void multiply(const float* x) {
    for (int p = 0; p < kParts; ++p) parts[p] *= at(x, p);
  }
  FASTQAT_INLINE void add_product(const float* x, const float* y) {
    for (int p = 0; p < kParts; ++p) parts[p] += at(x, p) * at(y, p);
  }
  FASTQAT_INLINE void add_product(const Lanes& x, const float* y) {
    for (int p = 0; p < kParts; ++p) parts[p] += x.parts[p] * at(y, p);
  }
  FASTQAT_INLINE void add_square(const float* x) { add_product(x, x); }
  FASTQAT_INLINE void add_square(const bf16* x) {
    for (int p = 0; p < kParts; ++p) {
      Bits bits;
      load_bits(x, p, bits);
      const Floats wide = reinterpret_cast<Floats>(bits << 16);
      parts[p] += wide * wide;
    }
  }
  // widen_fp16 of storage.h but for the sign, which a square loses.
  FASTQAT_INLINE void add_square(const fp16* x) {
    for (int p = 0; p < kParts; ++p) {
      Bits bits;
      load_bits(x, p, bits);
      const Bits magnitude = (bits & 0x7fffu) << 13;
      const Bits finite = reinterpret_cast<Bits>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
      const Floats wide = reinterpret_cast<Floats>(magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite);
      parts[p] += wide * wide;
    }
  }
  FASTQAT_INLINE static void load_bits(const void* halves, int p, Bits& bits) {
    bits = __builtin_convertvector(static_cast<const typename Vector<W>::Halves*>(halves)[p], Bits);
  }
  FASTQAT_INLINE double total() const {
    float lanes[kLanes];
    store(lanes);
    double sums[4] = {};
    for (int i = 0; i < kLanes; i += 4)
      for (int l = 0; l < 4; ++l) sums[l] += lanes[i + l];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
};

}  // namespace fastqat
