// Fake quantization of ONE element, for host and device. Everything is IEEE fp32; contraction and fast-math must be off.
//
//   v     = x / s                     "div"            x * inv, inv = fp32(1 / s)     "reciprocal"
//   x_hat = (clamp(rne(v) + z, qmin, qmax) - z) * s,   never -0
//
// Bounds are kept relative to the zero point: lo = qmin - z, hi = qmax - z. They are integers, so clamping before or after the
// rounding gives the same number. NaN falls through every comparison and stays NaN.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FASTQAT_INLINE __host__ __device__ __forceinline__
#else
#define FASTQAT_INLINE inline __attribute__((always_inline))
#endif

namespace fastqat {

struct QuantRange {
  float scale;
  float inv;
  float zero_point;
  float lo;
  float hi;
};

FASTQAT_INLINE float round_half_even(float v) {
#if defined(__CUDA_ARCH__)
  return rintf(v);
#else
  return __builtin_nearbyintf(v);
#endif
}

FASTQAT_INLINE QuantRange make_range(float scale, float zero_point, float qmin, float qmax) {
  const float z = round_half_even(zero_point);
  return {scale, 1.0f / scale, z, qmin - z, qmax - z};
}

FASTQAT_INLINE float clamp(float v, float lo, float hi) {
  const float low = v < lo ? lo : v;
  return low > hi ? hi : low;
}

template <bool kReciprocal>
FASTQAT_INLINE float to_steps(float x, const QuantRange& q) {
  if (kReciprocal) return x * q.inv;
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(x, q.scale);
#else
  return x / q.scale;
#endif
}

// c - z as a float; adding +0 turns -0 into +0.
template <bool kReciprocal>
FASTQAT_INLINE float centered_code(float x, const QuantRange& q) {
  return round_half_even(clamp(to_steps<kReciprocal>(x, q), q.lo, q.hi)) + 0.0f;
}

template <bool kReciprocal>
FASTQAT_INLINE float fake_quant(float x, const QuantRange& q) {
  return centered_code<kReciprocal>(x, q) * q.scale;
}

// The code itself, as a float; NaN gives qmin, as ONNX Runtime does.
template <bool kReciprocal>
FASTQAT_INLINE float code(float x, const QuantRange& q) {
  const float c = centered_code<kReciprocal>(x, q);
  return (c == c ? c : q.lo) + q.zero_point;
}

struct QuantGrad {
  float x;           // gradient of x: grad_y inside the range, else +0
  float scale;       // this element's term of the scale gradient
  float zero_point;  // this element's term of the zero point gradient
};

// "div" tests the range on v, "reciprocal" on rne(v). The clamped value tells all: it equals the tested one inside the range, is the
// bound outside, and is NaN where x is NaN (then grad_x is 0 and both terms are NaN).
template <bool kReciprocal>
FASTQAT_INLINE QuantGrad fake_quant_grad(float x, float grad_y, const QuantRange& q) {
  const float v = to_steps<kReciprocal>(x, q);
  const float tested = kReciprocal ? round_half_even(v) : v;
  const float bound = clamp(tested, q.lo, q.hi);
  const bool inside = bound == tested;
  const float slope = kReciprocal ? (tested * q.scale - x) * q.inv : round_half_even(bound) - v;
  const float shift = (bound - bound) - grad_y * q.scale;
  return {inside ? grad_y : 0.0f, grad_y * (inside ? slope : bound), inside ? 0.0f : shift};
}

}  // namespace fastqat
