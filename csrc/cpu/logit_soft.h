// Scores of one row against class probabilities y instead of a class. p - y cancels wherever the model has learned y, so this is done in
// fp64: exponents and normaliser anew, and the distance in a second pass over them.
#pragma once

#include <cmath>
#include <limits>

#include "logit_rows.h"

namespace fastqat {

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
