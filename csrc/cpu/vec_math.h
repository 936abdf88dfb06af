// Elementary functions for plain loops over fp32. Without branches or tables: a compiler vectorises them at any width, and every width
// gives the same bits. Coefficients: minimax fits (Remez) of this project, error of each fit in its comment.
#pragma once

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

}  // namespace fastqat
