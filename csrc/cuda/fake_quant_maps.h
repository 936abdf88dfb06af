// What the kernels of fake quantization do with elements once they know where they lie: load, ../fake_quant.h, store.
#pragma once

#include "../fake_quant.h"
#include "fake_quant_plain.h"
#include "storage.h"

namespace fastqat {

enum class CodeType { int8, uint8, int16, int32 };

struct Job {
  const void* x;
  const void* grad_y;
  void* out;                // x_hat, codes or grad_x, which may be grad_y
  const float* scale;       // [blocks * channels]
  const float* zero_point;  // the same, or null: all zero
  double* scale_sums;       // partials of the sums, see fake_quant_cut.h
  double* zero_point_sums;
  float* grad_scale;  // [blocks * channels], or null: not wanted
  float* grad_zero_point;
  double factor;
  float qmin, qmax;
  CodeType code_type;
  bool reciprocal;
  bool aligned;  // 128-bit accesses are
  bool whole;    // a partial is a whole sum: it goes to grad_scale and grad_zero_point at once
};

__device__ __forceinline__ QuantRange range_of(const Job& job, int64_t scale) {
  return make_range(job.scale[scale], job.zero_point ? job.zero_point[scale] : 0.0f, job.qmin, job.qmax);
}

// The ranges of a vector's elements: one for all, or one for each.
struct SameRange {
  QuantRange range;
  __device__ __forceinline__ const QuantRange& operator[](int) const { return range; }
  template <bool kReciprocal>
  __device__ __forceinline__ bool plain() const {
    return is_plain_range<kReciprocal>(range);
  }
};

template <int V>
struct RangeEach {
  QuantRange ranges[V];
  __device__ __forceinline__ const QuantRange& operator[](int j) const { return ranges[j]; }
  template <bool kReciprocal>
  __device__ __forceinline__ bool plain() const {
    bool all = true;
#pragma unroll
    for (int j = 0; j < V; ++j) all &= is_plain_range<kReciprocal>(ranges[j]);
    return all;
  }
};

template <class T, int U, int N, class Ranges>
__device__ __forceinline__ bool all_plain(const Pack<T, N> (&x)[U], const Ranges& ranges) {
  bool all = true;
#pragma unroll
  for (int u = 0; u < U; ++u) {
#pragma unroll
    for (int j = 0; j < N; ++j) all &= is_plain(widen(x[u].at[j]), ranges[j]);
  }
  return all;
}

// A map has `vectors<U>`, which takes U whole vectors from i on, `step` apart, `one` for a single element i, the j-th of its vector,
// and `flush`, called after every few rows of columns. Vectors that are not plain are read again, one by one: that is rare, and the
// general code is long. What is not aligned is not hurried either.
template <class In, bool kReciprocal, bool kAligned>
struct Forward {
  using T = In;
  using General = GeneralMath<kReciprocal>;
  using Plain = PlainMath<kReciprocal>;
  static constexpr int kUnroll = kAligned ? 4 : 1;
  const T* x;
  T* x_hat;
  __device__ __forceinline__ explicit Forward(const Job& job) : x(static_cast<const T*>(job.x)), x_hat(static_cast<T*>(job.out)) {}

  __device__ __forceinline__ void flush() {}
  __device__ __forceinline__ void one(int64_t i, int, const QuantRange& range) { x_hat[i] = narrow<T>(General::value(widen(x[i]), range)); }

  template <class Math, class Ranges>
  __device__ __forceinline__ void vector(int64_t i, const Pack<T, kVector<T>>& in, const Ranges& ranges) {
    Values<T> values;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) values[j] = Math::value(widen(in.at[j]), ranges[j]);
    store_values<kAligned>(values, x_hat + i);
  }
  template <int U, class Ranges>
  __device__ __forceinline__ void vectors(int64_t i, int64_t step, const Ranges& ranges) {
    if (kAligned) {
      Pack<T, kVector<T>> in[U];
      load<kAligned>(x + i, step, in);
      if (ranges.template plain<kReciprocal>() && all_plain(in, ranges)) {
#pragma unroll
        for (int u = 0; u < U; ++u) vector<Plain>(i + u * step, in[u], ranges);
        return;
      }
    }
#pragma unroll 1
    for (int u = 0; u < U; ++u, i += step) {
      Pack<T, kVector<T>> in[1];
      load<kAligned>(x + i, 0, in);
      vector<General>(i, in[0], ranges);
    }
  }
};

template <class In, bool kReciprocal, bool kAligned>
struct Codes {
  using T = In;
  using General = GeneralMath<kReciprocal>;
  using Plain = PlainMath<kReciprocal>;
  static constexpr int kUnroll = kAligned ? 2 : 1;
  const T* x;
  void* codes;
  CodeType type;
  __device__ __forceinline__ explicit Codes(const Job& job) : x(static_cast<const T*>(job.x)), codes(job.out), type(job.code_type) {}

  template <bool kWords, class Code, int N>
  __device__ __forceinline__ void put(const int32_t (&values)[N], int64_t i) const {
    Pack<Code, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.at[j] = static_cast<Code>(values[j]);
    store<kWords>(out, static_cast<Code*>(codes) + i);
  }
  template <bool kWords, int N>
  __device__ __forceinline__ void put_any(const int32_t (&values)[N], int64_t i) const {
    switch (type) {
      case CodeType::int8:
        return put<kWords, int8_t>(values, i);
      case CodeType::uint8:
        return put<kWords, uint8_t>(values, i);
      case CodeType::int16:
        return put<kWords, int16_t>(values, i);
      case CodeType::int32:
        return put<kWords, int32_t>(values, i);
    }
  }
  __device__ __forceinline__ void flush() {}
  __device__ __forceinline__ void one(int64_t i, int, const QuantRange& range) {
    const int32_t code[1] = {static_cast<int32_t>(General::code(widen(x[i]), range))};
    put_any<false>(code, i);
  }

  template <class Math, class Ranges>
  __device__ __forceinline__ void vector(int64_t i, const Pack<T, kVector<T>>& in, const Ranges& ranges) {
    int32_t values[kVector<T>];
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) values[j] = static_cast<int32_t>(Math::code(widen(in.at[j]), ranges[j]));
    put_any<kAligned>(values, i);
  }
  template <int U, class Ranges>
  __device__ __forceinline__ void vectors(int64_t i, int64_t step, const Ranges& ranges) {
    if (kAligned) {
      Pack<T, kVector<T>> in[U];
      load<kAligned>(x + i, step, in);
      if (ranges.template plain<kReciprocal>() && all_plain(in, ranges)) {
#pragma unroll
        for (int u = 0; u < U; ++u) vector<Plain>(i + u * step, in[u], ranges);
        return;
      }
    }
#pragma unroll 1
    for (int u = 0; u < U; ++u, i += step) {
      Pack<T, kVector<T>> in[1];
      load<kAligned>(x + i, 0, in);
      vector<General>(i, in[0], ranges);
    }
  }
};

// Writes grad_x and hands the terms of the sums to `sums`.
template <class In, bool kReciprocal, bool kAligned, class Sums>
struct Backward {
  using T = In;
  using General = GeneralMath<kReciprocal>;
  using Plain = PlainMath<kReciprocal>;
  static constexpr int kUnroll = kAligned ? 2 : 1;
  const T* x;
  const T* grad_y;
  T* grad_x;
  Sums& sums;
  __device__ __forceinline__ Backward(const Job& job, Sums& s)
      : x(static_cast<const T*>(job.x)), grad_y(static_cast<const T*>(job.grad_y)), grad_x(static_cast<T*>(job.out)), sums(s) {}

  __device__ __forceinline__ void flush() { sums.flush(); }
  __device__ __forceinline__ void one(int64_t i, int j, const QuantRange& range) {
    const QuantGrad grad = General::grad(widen(x[i]), widen(grad_y[i]), range);
    grad_x[i] = narrow<T>(grad.x);
    sums.add(grad, j);
  }

  template <class Math, class Ranges>
  __device__ __forceinline__ void vector(int64_t i, const Pack<T, kVector<T>>& x_in, const Pack<T, kVector<T>>& grad_in,
                                         const Ranges& ranges) {
    QuantGrad grads[kVector<T>];
    Values<T> values;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      grads[j] = Math::grad(widen(x_in.at[j]), widen(grad_in.at[j]), ranges[j]);
      values[j] = grads[j].x;
    }
    store_values<kAligned>(values, grad_x + i);
    sums.add(grads);
  }
  template <int U, class Ranges>
  __device__ __forceinline__ void vectors(int64_t i, int64_t step, const Ranges& ranges) {
    if (kAligned) {
      Pack<T, kVector<T>> x_in[U], grad_in[U];
      load<kAligned>(x + i, step, x_in);
      load<kAligned>(grad_y + i, step, grad_in);
      if (ranges.template plain<kReciprocal>() && all_plain(x_in, ranges)) {
#pragma unroll
        for (int u = 0; u < U; ++u) vector<Plain>(i + u * step, x_in[u], grad_in[u], ranges);
        return;
      }
    }
#pragma unroll 1
    for (int u = 0; u < U; ++u, i += step) {
      Pack<T, kVector<T>> x_in[1], grad_in[1];
      load<kAligned>(x + i, 0, x_in);
      load<kAligned>(grad_y + i, 0, grad_in);
      vector<General>(i, x_in[0], grad_in[0], ranges);
    }
  }
};

}  // namespace fastqat
