// Elementary functions for plain loops over fp32. Without branches, tables or fused multiply-adds: a compiler vectorises them at any
// width, and every width gives the same bits. Coefficients: minimax fits (Remez) of this project, error of each fit in its comment.
#pragma once

#include "../logit_element.h"
#include "storage.h"

// Before a loop over lanes that writes memory: its iterations do not touch each other's data, so no check for overlap is needed.
#if defined(__clang__)
#define FASTQAT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTQAT_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace fastqat {

// exp(x) for x <= 0: error at most 1.2 ulp, exactly 1 at 0, 0 below -87.3 (where fp32 would become denormal), NaN for NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 P(r), fit 3.3e-9. Adding 1.5 * 2^23 leaves n in the low bits of the sum.
FASTQAT_INLINE float exp_nonpositive(float x) {
  const float shifted = x * 0x1.715476p+0f + 0x1.8p+23f;
  const float n = shifted - 0x1.8p+23f;
  const float r = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;  // ln 2 in two parts: n times the first is exact
  const float r2 = r * r;
  const float low = 0x1.55548ap-3f * r + 0x1.fffffcp-2f;
  const float high = 0x1.123fc6p-7f * r + 0x1.555916p-5f;
  const float value = (((0x1.6a1a76p-10f * r2 + high) * r2 + low) * r2 + r) + 1.0f;
  const float power = from_bits((to_bits(shifted) << 23) + 0x3f800000u);
  return keep_if(!(x < -87.3f), value * power);
}

}  // namespace fastqat
