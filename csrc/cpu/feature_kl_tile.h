// The divergence of student and teacher over a tile of values in scratch: plain loops over [steps][kLanes], of which either every lane is a
// distribution of its own, or all lanes together are one.
//
// With u = log(p / t), the terms p u - p + t have the sum of p u, none is negative, and what errors of the normalisers add to them cancels.
// The sum of p - t, which is 0, tells by how much the ratio of the normalisers is off, to the accuracy of u itself.
#pragma once

#include <cmath>

#include "feature_kl_part.h"
#include "lanes.h"

namespace fastqat {

constexpr int64_t kTileSteps = 256;
constexpr int64_t kTile = kTileSteps * kLanes;

// Where the next tile's values of a step begin, to be fetched into the cache while this one is worked on.
struct NextTile {
  const char* data;
  int64_t step_bytes;
};

struct Tile {
  const float *student, *teacher;  // [steps][kLanes], as all
  float *exps, *teacher_exps;
  int64_t steps;
  int64_t count;  // values of the one distribution, followed by copies of the first; 0 where every lane is a distribution
  NextTile next, next_teacher;
  bool one() const { return count > 0; }
  int parts() const { return one() ? 1 : kLanes; }
};

struct PairTerms {
  float divergence;  // p u - p + t
  float difference;  // p - t
};

// See ../logit_element.h; half: u / 2.
FASTQAT_INLINE PairTerms compare(float p, float t, float half) {
  const float square = half * half, tail = square * tanh_tail(square), tau = fused(half, tail, half);
  const float both = p + t, plain = p - t;
  const bool near = square <= 0.25f;
  return {near ? both * half * (tau - tail) : fused(p, half + half, -plain), near ? both * tau : plain};
}

template <int W>
FASTQAT_INLINE void find_tops(const float* x, const Tile& tile, float* top) {
  Lanes<W> lanes;
  lanes.fill(-kInfinity);
  for (int64_t i = 0; i < tile.steps * kLanes; i += kLanes) lanes.raise_to(x + i);
  lanes.store(top);
  if (!tile.one()) return;
  float most = top[0];
  for (int l = 1; l < kLanes; ++l) most = larger(top[l], most);
  for (int l = 0; l < kLanes; ++l) top[l] = most;
}

// sums[l]: of lane l, or sums[0]: of all. Two chains of additions overlap, and round less than one.
template <int W>
FASTQAT_INLINE void add_lanes(const float* x, const Tile& tile, double* sums) {
  alignas(64) float lanes[kLanes];
  Lanes<W> even, odd;
  even.clear();
  odd.clear();
  int64_t s = 0;
  for (; s + 2 <= tile.steps; s += 2) {
    even.add(x + s * kLanes);
    odd.add(x + (s + 1) * kLanes);
  }
  if (s < tile.steps) even.add(x + s * kLanes);
  even.add(odd);
  even.store(lanes);
  for (int l = 0; l < kLanes; ++l) sums[l] = lanes[l];
  for (int half = tile.one() ? kLanes / 2 : 0; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
}

template <int W>
FASTQAT_INLINE void add_exps(const float* __restrict x, const float* __restrict top, const Tile& tile, const NextTile& next,
                             float* __restrict exps, double* total) {
  for (int64_t s = 0; s < tile.steps; ++s) {
    __builtin_prefetch(next.data + s * next.step_bytes);
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) exps[s * kLanes + l] = exp_nonpositive(x[s * kLanes + l] - top[l]);
  }
  if (tile.one())
    for (int64_t i = tile.count; i < tile.steps * kLanes; ++i) exps[i] = 0;
  add_lanes<W>(exps, tile, total);
}

// What turns the exponents of each lane into probabilities, and half_gap_at_equality.
struct Scales {
  alignas(64) float to_p[kLanes], to_t[kLanes], high[kLanes], low[kLanes];
};

FASTQAT_INLINE void set_scales(const Part& part, int first, int last, Scales& scales) {
  const ExactDifference equal = half_gap_at_equality(part.top, part.teacher_top, log_totals(part));
  for (int l = first; l < last; ++l) {
    scales.to_p[l] = static_cast<float>(1 / part.total);
    scales.to_t[l] = static_cast<float>(1 / part.teacher_total);
    scales.high[l] = equal.high;
    scales.low[l] = equal.low;
  }
}

// The terms take the place of the exponents.
FASTQAT_INLINE void compare_values(const Tile& tile, const Scales& scales) {
  const float* __restrict x = tile.student;
  const float* __restrict t = tile.teacher;
  float* __restrict exps = tile.exps;
  float* __restrict teacher_exps = tile.teacher_exps;
  for (int64_t i = 0; i < tile.steps * kLanes; i += kLanes) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      const float half = half_log_ratio(x[i + l], t[i + l], {scales.high[l], scales.low[l]});
      const PairTerms terms = compare(exps[i + l] * scales.to_p[l], teacher_exps[i + l] * scales.to_t[l], half);
      exps[i + l] = terms.divergence;
      teacher_exps[i + l] = terms.difference;
    }
  }
}

template <int W>
FASTQAT_INLINE void compare_tile(const Tile& tile, Part* parts) {
  alignas(64) float top[kLanes], teacher_top[kLanes];
  double total[kLanes], teacher_total[kLanes], divergence[kLanes], difference[kLanes];
  find_tops<W>(tile.student, tile, top);
  find_tops<W>(tile.teacher, tile, teacher_top);
  add_exps<W>(tile.student, top, tile, tile.next, tile.exps, total);
  add_exps<W>(tile.teacher, teacher_top, tile, tile.next_teacher, tile.teacher_exps, teacher_total);
  Scales scales;
  for (int l = 0; l < tile.parts(); ++l) {
    parts[l] = {top[l], teacher_top[l], total[l], teacher_total[l], 0};
    set_scales(parts[l], l, tile.one() ? kLanes : l + 1, scales);
  }
  compare_values(tile, scales);
  add_lanes<W>(tile.exps, tile, divergence);
  add_lanes<W>(tile.teacher_exps, tile, difference);
  for (int l = 0; l < tile.parts(); ++l) {
    parts[l].teacher_total /= 1 + difference[l];
    parts[l].divergence = divergence[l];
    if (std::isfinite(divergence[l] + difference[l])) continue;
    const int64_t step = tile.one() ? 1 : kLanes;
    parts[l] = compare_carefully(tile.student + l, tile.teacher + l, step, tile.one() ? tile.count : tile.steps);
  }
}

}  // namespace fastqat
