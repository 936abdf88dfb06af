// A distribution of student and teacher, or a part of one, and how parts become one: by the chain rule, KL is what it is between the parts,
// and the mean, weighted by the student, of what it is within each. In fp64, few operations per part.
#pragma once

#include <cmath>

#include "vec_math.h"

namespace fastqat {

// (x - t) / 2 minus `from`, without rounding x - t, of which log(p / t) may be a small rest: exact_difference, but NaN beside infinity.
// Halved, so that no finite x and t overflow.
FASTQAT_INLINE float half_log_ratio(float x, float t, ExactDifference from) {
  const float a = 0.5f * x, b = 0.5f * t, high = a - b, minus_b = high - a;
  const float low = (a - (high - minus_b)) - (b + minus_b);
  return (high - from.high) + (low - from.low);
}

// What (x - t) / 2 is where p = t; shift: log of the student's total minus that of the teacher's.
FASTQAT_INLINE ExactDifference half_gap_at_equality(float top, float teacher_top, double shift) {
  const ExactDifference gap = exact_difference(0.5f * top, 0.5f * teacher_top);
  const double rest = 0.5 * shift + gap.low;
  const float high = static_cast<float>(gap.high + rest);
  return {high, static_cast<float>((gap.high - high) + rest)};
}

// Both totals are sums of exp(value - top): 0 where there are only values of -inf, NaN beside a NaN or +inf.
struct Part {
  float top, teacher_top;
  double total, teacher_total;
  double divergence;  // of the part by itself
};

inline double log_totals(const Part& part) { return std::log(part.total / part.teacher_total); }

// exp(value - top), 0 for -inf.
inline double exp_below(float value, float top) { return value == -kInfinity ? 0.0 : std::exp(static_cast<double>(value) - top); }

inline double sum_of_exps(const float* x, int64_t step, int64_t count, float& top) {
  double total = 0;
  top = -kInfinity;
  for (int64_t i = 0; i < count; ++i) {
    const float value = x[i * step];
    if (!(value < kInfinity)) return value - value;
    top = larger(value, top);
  }
  for (int64_t i = 0; i < count; ++i) total += exp_below(x[i * step], top);
  return total;
}

// A part value by value, for what fast loops over fp32 do not do: -inf, and distances beyond the range of fp32.
inline Part compare_carefully(const float* x, const float* t, int64_t step, int64_t count) {
  Part part{};
  part.total = sum_of_exps(x, step, count, part.top);
  part.teacher_total = sum_of_exps(t, step, count, part.teacher_top);
  const double shift = log_totals(part);
  for (int64_t i = 0; i < count && part.total > 0 && part.teacher_total > 0; ++i) {
    const double p = exp_below(x[i * step], part.top) / part.total;
    const double below = static_cast<double>(x[i * step]) - part.top, teacher_below = static_cast<double>(t[i * step]) - part.teacher_top;
    if (p > 0) part.divergence += p * (below - teacher_below - shift);
  }
  return part;
}

// All of a distribution: the divergence, never below 0, and log(total / teacher_total).
struct Whole {
  Part part;
  double shift;
};

// NaN where one of both has no mass.
inline Whole whole_of(const Part& part) {
  const double shift = log_totals(part), divergence = part.divergence + (shift - shift);
  return {{part.top, part.teacher_top, part.total, part.teacher_total, divergence < 0 ? 0 : divergence}, shift};
}

// What is in `parts` is used up.
inline Whole merge(Part* parts, int64_t count) {
  Part all{-kInfinity, -kInfinity, 0, 0, 0};
  for (int64_t i = 0; i < count; ++i) {
    all.top = larger(parts[i].top, all.top);
    all.teacher_top = larger(parts[i].teacher_top, all.teacher_top);
  }
  for (int64_t i = 0; i < count; ++i) {
    Part& part = parts[i];
    const double below = static_cast<double>(part.top) - all.top, teacher_below = static_cast<double>(part.teacher_top) - all.teacher_top;
    part.divergence += below - teacher_below + log_totals(part);
    part.total *= exp_below(part.top, all.top);
    all.total += part.total;
    all.teacher_total += part.teacher_total * exp_below(part.teacher_top, all.teacher_top);
  }
  const double shift = log_totals(all);
  for (int64_t i = 0; i < count; ++i)
    if (parts[i].total != 0) all.divergence += parts[i].total / all.total * (parts[i].divergence - shift);
  return whole_of(all);
}

}  // namespace fastqat
