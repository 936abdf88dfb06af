// The comparison of student and teacher at ONE class, for host and device, with p and t their probabilities. Without cancellation near
// agreement: u = log(p / t) comes from the logits themselves, x = u / 2, and with tau = tanh(x) = x + x^3 Q(x^2)
//
//   p - t = (p + t) tau,   p u - p + t = (p + t) x (tau - x^2 Q)
//
// Far from agreement (|u| > 1) the plain forms are accurate. A host does not contract the products, so that every instruction set gives
// the same bits; a GPU does.
#pragma once

#include <cstdint>
#include <cstring>

#include "fake_quant.h"

namespace fastqat {

FASTQAT_INLINE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

// value, or 0. A host does it by bits: conditionals on floats that depend on each other become branches, and a loop stays scalar.
FASTQAT_INLINE float keep_if(bool condition, float value) {
#if defined(__CUDA_ARCH__)
  return condition ? value : 0.0f;
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= condition ? ~0u : 0u;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
#endif
}

// Q with tanh(x) = x + x^3 Q(x^2), for x2 = x^2 <= 1/4; error of the fit (Remez) 1.4e-8 of tanh(x).
FASTQAT_INLINE float tanh_tail(float x2) {
  const float low = multiply_add(0.1332598796f, x2, -0.3333314852f);
  const float high = multiply_add(0.01725649364f, x2, -0.05305284368f);
  return multiply_add(high, x2 * x2, low);
}

// a - b = high + low without error. Where high is not finite, low is 0.
struct ExactDifference {
  float high, low;
};

FASTQAT_INLINE ExactDifference exact_difference(float a, float b) {
  const float high = a - b;
  const float minus_b = high - a;
  const float low = (a - (high - minus_b)) - (b + minus_b);
  return {high, low == low ? low : 0.0f};
}

struct ClassAgreement {
  float difference;  // p - t
  float divergence;  // p u - p + t, at least 0
};

// Logits z and zt, probabilities p and t; shift: z - zt where p = t, in two parts.
FASTQAT_INLINE ClassAgreement compare_class(float z, float zt, float p, float t, float shift_high, float shift_low) {
  const float both = p + t;
  const ExactDifference gap = exact_difference(z, zt);
  const float x = ((gap.high - shift_high) + (gap.low - shift_low)) * 0.5f;
  const float x2 = x * x, tail = x2 * tanh_tail(x2), tau = multiply_add(x, tail, x);
  const bool near = x2 <= 0.25f;
  const float difference = near ? both * tau : p - t;
  const float far_divergence = keep_if(p > 0.0f, p * (x + x)) - difference;
  return {difference, near ? both * x * (tau - tail) : far_divergence};
}

// Sums over the classes.
struct Agreement {
  double difference;     // of p - t: 0 but for the error of the normalisers
  double difference_sq;  // of (p - t)^2
  double against_p;      // of (p - t) p
  double divergence;     // of p u - p + t
  // The sum of (p - t)^2 once p is corrected for the error of the normalisers, to first order: p -> p (1 - error); p_sq: sum of p^2.
  FASTQAT_INLINE double corrected_sq(double p_sq) const {
    const double error = difference / (1 + difference);
    return difference_sq - 2 * error * against_p + error * error * p_sq;
  }
};

}  // namespace fastqat
