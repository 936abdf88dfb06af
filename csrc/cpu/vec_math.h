// Elementary functions for plain loops over fp32. Without branches or tables: a compiler vectorises them at any width, and every width
// gives the same bits. Coefficients: minimax fits (Remez) of this project, error of each fit in its comment.
#pragma once

#include <limits>

#include "../logit_element.h"
#include "storage.h"

// Before a loop over lanes that writes memory: its iterations do not touch each other's data, so no check for overlap is needed.
#if defined(__clang__)
#define FASTQAT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTQAT_INDEPENDENT _Pragma("GCC ivdep")
#endif

// A lambda that is compiled for the level of the function around it.
#define FASTQAT_INLINE_LAMBDA __attribute__((always_inline))

namespace fastqat {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// b where one of them is NaN.
FASTQAT_INLINE float larger(float a, float b) { return a > b ? a : b; }
FASTQAT_INLINE float smaller(float a, float b) { return a < b ? a : b; }

// a * b + c, rounded once, so that every level gives the same bits: one instruction, but at the baseline of x86 a call.
FASTQAT_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

constexpr float kExpLeast = -88.0f;               // exp_bounded is 0 from -87.7 down
constexpr float kExpScale = 0x1.715476p+0f;       // 1 / ln 2
constexpr float kExpMagic = 0x1.8p+23f + 127.0f;  // added to n, it leaves the exponent of 2^n in the low bits of the sum
constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
constexpr float kExpTerms[] = {0x1.fffffcp-2f, 0x1.55548ap-3f, 0x1.555916p-5f, 0x1.123fc6p-7f, 0x1.6a1a76p-10f};

// exp(x) for kExpLeast <= x <= 0: error at most 1.2 ulp where it is no denormal, exactly 1 at 0, NaN for NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 P(r), fit 3.3e-9.
FASTQAT_INLINE float exp_bounded(float x) {
  const float shifted = fused(x, kExpScale, kExpMagic);
  const float n = shifted - kExpMagic;
  const float r = fused(-n, kLn2Low, fused(-n, kLn2High, x)), r2 = r * r;
  const float low = fused(r, kExpTerms[1], kExpTerms[0]);
  const float high = fused(r2, kExpTerms[4], fused(r, kExpTerms[3], kExpTerms[2]));
  const float value = fused(fused(high, r2, low), r2, r) + 1.0f;
  return value * from_bits(to_bits(shifted) << 23);
}

// The same for any x <= 0.
FASTQAT_INLINE float exp_nonpositive(float x) { return exp_bounded(kExpLeast > x ? kExpLeast : x); }

// value, or 0; see keep_if of floats.
FASTQAT_INLINE double keep_if(bool condition, double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= condition ? ~uint64_t{0} : uint64_t{0};
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// exp(x) for x <= 0, error below 1e-14 of it, 0 below -700. As exp_nonpositive, with the Taylor series of exp(r) to r^11: the term left
// out is below 7e-15.
FASTQAT_INLINE double exp_nonpositive(double x) {
  const double shifted = x * 0x1.71547652b82fep+0 + 0x1.8p+52;
  const double n = shifted - 0x1.8p+52;
  const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  double series = 1.0 / 39916800;
  for (const double term : {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
    series = series * r + term;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + 0x3ff0000000000000u;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return keep_if(!(x < -700.0), series * power);
}

// Not inlined: seen together with the loops above it, the lanes would be kept as single doubles.
__attribute__((noinline)) inline double fold(double* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

}  // namespace fastqat
