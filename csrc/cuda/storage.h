// float, bf16 and fp16 in memory, fp32 in registers: 128 bits at a time where every pointer allows it, else element by element.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastqat {

template <class T>
constexpr int kVector = 16 / sizeof(T);  // elements of one 128-bit access

// What one instruction moves; a plain struct of elements would be taken apart.
template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = uint8_t;
};
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class T, int N>
struct Pack {
  static constexpr int kBytes = N * sizeof(T), kWords = kBytes <= 16 ? 1 : kBytes / 16;
  using word = typename Word<kBytes / kWords>::type;
  union {
    T at[N];
    word words[kWords];
  };
  __device__ __forceinline__ Pack() {}
};

template <class T>
using Values = float[kVector<T>];

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }

// Rounded once, half to even. Pairs, since the hardware narrows two values in one instruction.
__device__ __forceinline__ void narrow_pair(float a, float b, float* out) {
  out[0] = a;
  out[1] = b;
}
__device__ __forceinline__ void narrow_pair(float a, float b, __nv_bfloat16* out) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  out[0] = pair.x;
  out[1] = pair.y;
}
__device__ __forceinline__ void narrow_pair(float a, float b, __half* out) {
  const __half2 pair = __floats2half2_rn(a, b);
  out[0] = pair.x;
  out[1] = pair.y;
}

template <class T>
__device__ __forceinline__ T narrow(float v) {
  T pair[2];
  narrow_pair(v, v, pair);
  return pair[0];
}

// W neighbours by one access, on a boundary of their size.
template <int W, class T>
__device__ __forceinline__ Pack<T, W> load_pack(const T* from) {
  Pack<T, W> pack;
  pack.words[0] = *reinterpret_cast<const typename Pack<T, W>::word*>(from);
  return pack;
}

// U vectors, `step` elements apart: all loads are issued before the first value is used.
template <bool kAligned, int U, class T>
__device__ __forceinline__ void load(const T* from, int64_t step, Pack<T, kVector<T>> (&packs)[U]) {
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (kAligned) {
      packs[u].words[0] = *reinterpret_cast<const uint4*>(from + u * step);
    } else {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) packs[u].at[j] = from[u * step + j];
    }
  }
}

template <bool kAligned, class T, int N>
__device__ __forceinline__ void store(const Pack<T, N>& pack, T* to) {
  if (kAligned) {
    using Word = typename Pack<T, N>::word;
#pragma unroll
    for (int w = 0; w < Pack<T, N>::kWords; ++w)
      __stwb(reinterpret_cast<Word*>(to) + w, pack.words[w]);  // one instruction, whatever surrounds it
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = pack.at[j];
  }
}

template <bool kAligned, class T>
__device__ __forceinline__ void store_values(const Values<T>& values, T* to) {
  Pack<T, kVector<T>> pack;
#pragma unroll
  for (int j = 0; j < kVector<T>; j += 2) narrow_pair(values[j], values[j + 1], pack.at + j);
  store<kAligned>(pack, to);
}

}  // namespace fastqat
