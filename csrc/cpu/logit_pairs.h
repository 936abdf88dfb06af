// The sums over a row of student and teacher together. Where both agree closely, differences of sums cancel: there, and where a logit is
// not finite, the rows are compared once more, class by class (see ../logit_element.h).
#pragma once

#include <cmath>

#include "logit_rows.h"

namespace fastqat {

FASTQAT_INLINE TeacherSums add_exponents(const LogitRow& row, const LogitRow& student, const char* next_row, int64_t group_bytes,
                                         int64_t groups) {
#if FASTQAT_X86_LEVELS
  if (cpu_level() == Level::avx512) {
    TeacherSums sums = avx512::add_teacher(row, student, next_row, group_bytes, groups);
    sums.total += no_number(row);
    return sums;
  }
#endif
  const float* __restrict logits = row.logits;
  const float* __restrict student_logits = student.logits;
  const float* __restrict student_exps = student.exps;
  float* __restrict exps = row.exps;
  const float top = row.top, student_top = student.top;
  LaneSums<2> few_sums;
  LaneSums<1> many_sums;
  add_groups(groups, few_sums, many_sums, [&](int64_t g, float (&few)[2][kLanes], float (&many)[1][kLanes]) FASTQAT_INLINE_LAMBDA {
    __builtin_prefetch(next_row + g * group_bytes);
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      const int64_t i = g * kLanes + l;
      const float d = logits[i] - top, student_d = student_logits[i] - student_top;
      const float e = exp_nonpositive(d);
      exps[i] = e;
      few[0][l] += e;
      few[1][l] = fused(student_exps[i], student_d - d, few[1][l]);
      many[0][l] = fused(e, student_d, many[0][l]);
    }
  });
  return {few_sums.total(0) + no_number(row), many_sums.total(0), few_sums.total(1)};
}

// Sum of (e_j - scale * e_j of the teacher)^2.
FASTQAT_INLINE double add_distance(const LogitRow& student, const LogitRow& teacher, float scale, int64_t groups) {
#if FASTQAT_X86_LEVELS
  if (cpu_level() == Level::avx512) return avx512::add_distance(student, teacher, scale, groups);
#endif
  const float* __restrict es = student.exps;
  const float* __restrict et = teacher.exps;
  LaneSums<1> sums;
  for (int64_t block = 0; block < groups; block += kGroups) {
    const int64_t end = block + kGroups < groups ? block + kGroups : groups;
    float part[1][kLanes] = {};
    for (int64_t i = block * kLanes; i < end * kLanes; i += kLanes)
      for (int l = 0; l < kLanes; ++l) {
        const float difference = fused(-scale, et[i + l], es[i + l]);
        part[0][l] = fused(difference, difference, part[0][l]);
      }
    sums.add(part);
  }
  return sums.total(0);
}

// ds^2, res and the sum of t_j (z_j - top) of the student.
struct Comparison {
  double distance_sq, divergence, cross;
};

// Whether the contract (1e-5 of each score) holds for the plain sums. Errors that do not average out: of an exponent 1.5e-7 of it, of a
// normaliser 3.7e-7 of it. They make 1.2e-6 of |p| in |p - t|. In res they make 7.4e-7 from the normalisers, 6e-7 of the sum of p |log(p /
// t)|, which is at most res + sqrt(2 res), and 1.2e-7 to 3e-7 of the distances from the tops and between them. NaN is not far.
inline bool is_far(const StudentSums& student, const Comparison& at, double log_ratio) {
  const double p_sq = (student.ties + student.rest_sq) / (student.total * student.total);
  const double sizes = at.divergence + std::sqrt(2 * at.divergence), distances = std::abs(log_ratio) - student.weighted / student.total;
  return at.distance_sq >= 0.15 * 0.15 * p_sq && at.divergence >= 0.08 + 0.06 * sizes + 0.03 * distances;
}

struct ExactTotals {
  double student, teacher, cross;
};

// Equal rows give equal sums.
FASTQAT_INLINE ExactTotals add_exactly(const LogitRow& student, const LogitRow& teacher, int64_t groups) {
  const float* __restrict logits = student.logits;
  const float* __restrict es = student.exps;
  const float* __restrict et = teacher.exps;
  const float top = student.top;
  LaneSums<3> sums;
  for (int64_t i = 0; i < groups * kLanes; i += kLanes) {
    float part[3][kLanes];
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      part[0][l] = es[i + l];
      part[1][l] = et[i + l];
      part[2][l] = keep_if(et[i + l] > 0.0f, et[i + l] * (logits[i + l] - top));
    }
    sums.add(part);
  }
  return {sums.total(0) + no_number(student), sums.total(1) + no_number(teacher), sums.total(2)};
}

FASTQAT_INLINE Agreement add_agreement(const LogitRow& student, const LogitRow& teacher, float to_p, float to_t, double shift,
                                       int64_t groups) {
  const float* __restrict z = student.logits;
  const float* __restrict zt = teacher.logits;
  const float* __restrict e = student.exps;
  const float* __restrict et = teacher.exps;
  const float shift_high = static_cast<float>(shift), shift_low = static_cast<float>(shift - shift_high);
  LaneSums<4> sums;
  for (int64_t block = 0; block < groups; block += kGroups) {
    const int64_t end = block + kGroups < groups ? block + kGroups : groups;
    float part[4][kLanes] = {};
    for (int64_t g = block; g < end; ++g)
      for (int l = 0; l < kLanes; ++l) {
        const int64_t i = g * kLanes + l;
        const float p = e[i] * to_p;
        const ClassAgreement at = compare_class(z[i], zt[i], p, et[i] * to_t, shift_high, shift_low);
        part[0][l] += at.difference;
        part[1][l] += at.difference * at.difference;
        part[2][l] += at.difference * p;
        part[3][l] += at.divergence;
      }
    sums.add(part);
  }
  return {sums.total(0), sums.total(1), sums.total(2), sums.total(3)};
}

// The normalisers are fp32-accurate. Where student and teacher agree so closely that this shows, sum(p - t) tells by how much log p is off,
// and the comparison runs once more.
FASTQAT_INLINE Comparison compare_closely(const LogitRow& student, const LogitRow& teacher, double rest_sq, int64_t groups) {
  const ExactTotals totals = add_exactly(student, teacher, groups);
  const double p_sq = (1 + rest_sq) / (totals.student * totals.student);
  const float to_p = static_cast<float>(1 / totals.student), to_t = static_cast<float>(1 / totals.teacher);
  double shift = static_cast<double>(student.top) - teacher.top + std::log(totals.student / totals.teacher), ds_sq = 0;
  Agreement sums{};
  for (int attempt = 0; attempt < 2; ++attempt) {
    sums = add_agreement(student, teacher, to_p, to_t, shift, groups);
    ds_sq = sums.corrected_sq(p_sq);
    if (!(ds_sq < 0.01 * sums.difference_sq)) break;
    shift += std::log1p(sums.difference);
  }
  return {ds_sq, sums.divergence, totals.cross / totals.teacher};
}

FASTQAT_INLINE Comparison compare_rows(const LogitRow& student, const LogitRow& teacher, const StudentSums& student_sums,
                                       const TeacherSums& teacher_sums, int64_t groups) {
  const double total = student_sums.total, ratio = total / teacher_sums.total, log_ratio = std::log(ratio);
  const double distance_sq = add_distance(student, teacher, static_cast<float>(ratio), groups) / (total * total);
  const Comparison plain{distance_sq, teacher_sums.apart / total - log_ratio, teacher_sums.cross / teacher_sums.total};
  if (is_far(student_sums, plain, log_ratio)) return plain;
  return compare_closely(student, teacher, student_sums.ties - 1 + student_sums.rest_sq, groups);
}

}  // namespace fastqat
