// Scores of one row against class probabilities y instead of a class. p - y cancels wherever the model has learned y, so this is done in
// fp64: exponents and normaliser anew, and the distance in a second pass over them.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "logit_rows.h"

namespace fastqat {

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

struct SoftSums {
  double weight;       // sum of y; NaN where a y is negative, infinite or NaN
  double weighted;     // sum of y (z - top)
  double distance_sq;  // sum of (p - y)^2
};

// y: loaded like a row of logits. exps: scratch of as many doubles.
FASTQAT_INLINE SoftSums add_soft_target(const LogitRow& row, const LogitRow& target, double* __restrict exps, int64_t groups) {
  const float* __restrict logits = row.logits;
  const float* __restrict ys = target.logits;
  const double top = row.top, nan = std::numeric_limits<double>::quiet_NaN();
  double first[3][kLanes] = {}, second[1][kLanes] = {};
  for (int64_t g = 0; g < groups; ++g) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      const int64_t i = g * kLanes + l;
      const double d = logits[i] - top, e = exp_nonpositive(d), y = ys[i];
      exps[i] = e;
      first[0][l] += e;
      first[1][l] += y >= 0.0 && y < kInfinity ? y : nan;
      first[2][l] += keep_if(y > 0.0, y * d);
    }
  }
  LaneSums<3> sums;
  sums.add(first);
  const double to_p = 1 / (sums.total(0) + no_number(row));
  for (int64_t g = 0; g < groups; ++g)
    for (int l = 0; l < kLanes; ++l) {
      const double difference = exps[g * kLanes + l] * to_p - ys[g * kLanes + l];
      second[0][l] += difference * difference;
    }
  LaneSums<1> distance;
  distance.add(second);
  return {sums.total(1), sums.total(2), distance.total(0)};
}

}  // namespace fastqat
