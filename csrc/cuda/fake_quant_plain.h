// The maths of ../fake_quant.h in half the instructions, bit for bit the same where the scale is ordinary and x / s far from overflow.
// The caller asks first (`is_plain_range`, `is_plain`), and takes the general functions where it is not so; NaN and infinity never are.
//
// The quotient: g = x * r with r = fp32(1 / s), then v = g + (x - g * s) * r by two fused operations. v is x / s rounded correctly:
// before the last rounding it is off by less than 2.25 * 2^-24 units in the last place, so that only an x / s this close to the middle
// between two floats could go wrong; all of those, for all fractions of x and s, were compared with the division, and none does.
#pragma once

#include "../fake_quant.h"

namespace fastqat {

constexpr float kFar = 0x1p60f;        // quotients beyond it are not plain
constexpr float kRounder = 0x1.8p23f;  // added and subtracted, it rounds half to even what is below 2^22, and turns -0 into +0
constexpr float kMostSteps = 0x1p22f;

// Between 2^-60 and 2^60 nothing that matters underflows, but for one thing: a scale above 1 may turn a tiny x into a zero, which lies
// inside a range that begins or ends at zero, while x itself does not.
template <bool kReciprocal>
__device__ __forceinline__ bool is_plain_range(const QuantRange& q) {
  const bool ordinary = q.scale > 1 / kFar && q.scale < kFar && q.lo <= q.hi && q.lo >= -kMostSteps && q.hi <= kMostSteps;
  return ordinary && (kReciprocal || q.scale <= 1.0f || (q.lo != 0.0f && q.hi != 0.0f));
}

__device__ __forceinline__ bool is_plain(float x, const QuantRange& q) { return fabsf(x * q.inv) < kFar; }

// The general functions and the plain ones, under the same names.
template <bool kReciprocal>
struct GeneralMath {
  __device__ __forceinline__ static float value(float x, const QuantRange& q) { return fake_quant<kReciprocal>(x, q); }
  __device__ __forceinline__ static float code(float x, const QuantRange& q) { return fastqat::code<kReciprocal>(x, q); }
  __device__ __forceinline__ static QuantGrad grad(float x, float grad_y, const QuantRange& q) {
    return fake_quant_grad<kReciprocal>(x, grad_y, q);
  }
};

template <bool kReciprocal>
struct PlainMath {
  __device__ __forceinline__ static float steps(float x, const QuantRange& q) {
    const float guess = x * q.inv;
    return kReciprocal ? guess : fmaf(fmaf(-guess, q.scale, x), q.inv, guess);
  }
  __device__ __forceinline__ static float clamp(float v, const QuantRange& q) { return fminf(fmaxf(v, q.lo), q.hi); }
  __device__ __forceinline__ static float round(float v) { return (v + kRounder) - kRounder; }
  __device__ __forceinline__ static float centered_code(float x, const QuantRange& q) { return round(clamp(steps(x, q), q)); }

  __device__ __forceinline__ static float value(float x, const QuantRange& q) { return centered_code(x, q) * q.scale; }
  __device__ __forceinline__ static float code(float x, const QuantRange& q) { return centered_code(x, q) + q.zero_point; }
  __device__ __forceinline__ static QuantGrad grad(float x, float grad_y, const QuantRange& q) {
    const float v = steps(x, q), tested = kReciprocal ? rintf(v) : v, bound = clamp(tested, q);
    const bool inside = bound == tested;
    const float slope = kReciprocal ? (tested * q.scale - x) * q.inv : round(bound) - v;
    return {inside ? grad_y : 0.0f, grad_y * (inside ? slope : bound), inside ? 0.0f : -(grad_y * q.scale)};
  }
};

}  // namespace fastqat
