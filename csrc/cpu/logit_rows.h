// The sums over one row of logits from which every per-sample score is finished: plain loops over groups of kLanes classes.
//
//   load_row        row -> fp32 scratch padded with -inf to whole groups; its two largest values
//   add_exponents   e_j = exp(z_j - top), and the sums over it
//   add_agreement   the sums that compare student and teacher, once both normalisers are known
//
// The largest logit never enters a sum: rest = sum of e_j below the top, so that a loss of 1e-9 keeps its digits.
#pragma once

#include <cmath>
#include <limits>

#include "vec_math.h"

namespace fastqat {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kGroups = 32;  // groups of kLanes that are summed in fp32 before they are added to fp64 lanes

struct LogitMatrix {
  const char* data;  // null: not given
  int64_t row_bytes, item_bytes;
  ScalarType type;
  const char* row(int64_t i) const { return data + i * row_bytes; }
  int64_t group_bytes() const { return kLanes * item_bytes; }
};

inline LogitMatrix as_matrix(const Tensor& t) {
  const int64_t item_bytes = t.scalar_type() == ScalarType::Float ? 4 : 2;
  return {static_cast<const char*>(t.data_ptr()), t.stride(0) * item_bytes, item_bytes, t.scalar_type()};
}

struct LogitRow {
  float* logits;  // [groups * kLanes], padded with -inf
  float* exps;    // e_j = exp(z_j - top)
  float top, second;
};

// Not inlined: seen together with the loops above it, the lanes would be kept as single doubles.
__attribute__((noinline)) inline double fold(double* lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <int kSums>
struct LaneSums {
  double lanes[kSums][kLanes] = {};

  template <class T>
  FASTQAT_INLINE void add(const T (&block)[kSums][kLanes]) {
    for (int s = 0; s < kSums; ++s)
      for (int l = 0; l < kLanes; ++l) lanes[s][l] += block[s][l];
  }
  FASTQAT_INLINE double total(int s) { return fold(lanes[s]); }
};

FASTQAT_INLINE float larger(float a, float b) { return a > b ? a : b; }
FASTQAT_INLINE float smaller(float a, float b) { return a < b ? a : b; }

template <int kHalf>
FASTQAT_INLINE void fold_top_two(float* first, float* second) {
  for (int l = 0; l < kHalf; ++l) {
    second[l] = larger(larger(second[l], second[l + kHalf]), smaller(first[l], first[l + kHalf]));
    first[l] = larger(first[l], first[l + kHalf]);
  }
  if constexpr (kHalf > 1) fold_top_two<kHalf / 2>(first, second);
}

// NaN is copied, and never becomes the top.
template <class T>
FASTQAT_INLINE void load_row(const char* row, int64_t classes, LogitRow& out) {
  const T* __restrict source = reinterpret_cast<const T*>(row);
  float* __restrict logits = out.logits;
  float first[kLanes], second[kLanes];
  for (int l = 0; l < kLanes; ++l) first[l] = second[l] = -kInfinity;
  const int64_t whole = classes / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      const float x = widen(source[i + l]);
      logits[i + l] = x;
      second[l] = larger(smaller(x, first[l]), second[l]);
      first[l] = larger(x, first[l]);
    }
  }
  if (whole < classes) {
    for (int l = 0; l < kLanes; ++l) logits[whole + l] = -kInfinity;
    for (int64_t i = whole; i < classes; ++i) logits[i] = widen(source[i]);
    for (int l = 0; l < kLanes; ++l) {
      second[l] = larger(smaller(logits[whole + l], first[l]), second[l]);
      first[l] = larger(logits[whole + l], first[l]);
    }
  }
  fold_top_two<kLanes / 2>(first, second);
  out.top = first[0];
  out.second = second[0];
}

FASTQAT_INLINE void load_row(const LogitMatrix& matrix, int64_t i, int64_t classes, LogitRow& out) {
  if (matrix.type == ScalarType::Float) return load_row<float>(matrix.row(i), classes, out);
  if (matrix.type == ScalarType::BFloat16) return load_row<bf16>(matrix.row(i), classes, out);
  load_row<fp16>(matrix.row(i), classes, out);
}

struct StudentSums {
  double rest, rest_sq;  // sums of e_j and e_j^2 over the classes below the top
  double weighted;       // sum of e_j (z_j - top) <= 0
  double ties;           // how many classes share the top; at least 1
  double total;          // sum of e_j over all classes
  double log_total;
};

FASTQAT_INLINE double count_ties(const LogitRow& row, int64_t groups) {
  if (row.second != row.top) return 1;
  double ties = 0;
  for (int64_t i = 0; i < groups * kLanes; ++i) ties += row.logits[i] == row.top;
  return ties;
}

// 0, or NaN where the top is none: a row of NaN, of -inf, or with +inf.
FASTQAT_INLINE double no_number(const LogitRow& row) { return static_cast<double>(row.top) - row.top; }

// next_row is fetched into the cache while this row is worked on.
FASTQAT_INLINE StudentSums add_exponents(const LogitRow& row, const char* next_row, int64_t group_bytes, int64_t groups) {
  const float* __restrict logits = row.logits;
  float* __restrict exps = row.exps;
  const float top = row.top;
  LaneSums<3> sums;
  for (int64_t block = 0; block < groups; block += kGroups) {
    const int64_t end = block + kGroups < groups ? block + kGroups : groups;
    float part[3][kLanes] = {};
    for (int64_t g = block; g < end; ++g) {
      __builtin_prefetch(next_row + g * group_bytes);
      FASTQAT_INDEPENDENT
      for (int l = 0; l < kLanes; ++l) {
        const float d = logits[g * kLanes + l] - top;
        const float e = exp_nonpositive(d);
        const float below_top = keep_if(!(d >= 0.0f), e);  // NaN goes into the sum
        exps[g * kLanes + l] = e;
        part[0][l] += below_top;
        part[1][l] += below_top * below_top;
        part[2][l] += keep_if(e > 0.0f, e * d);
      }
    }
    sums.add(part);
  }
  const double rest = sums.total(0) + no_number(row), ties = count_ties(row, groups);
  return {rest, sums.total(1), sums.total(2), ties, ties + rest, std::log1p(ties - 1 + rest)};
}

struct TeacherSums {
  double total;  // sum of e_j of the teacher, built like the student's: equal rows give equal sums
  double cross;  // sum of e_j of the teacher times (z_j - top) of the student
};

FASTQAT_INLINE TeacherSums add_exponents(const LogitRow& row, const LogitRow& student, const char* next_row, int64_t group_bytes,
                                         int64_t groups) {
  const float* __restrict logits = row.logits;
  const float* __restrict student_logits = student.logits;
  float* __restrict exps = row.exps;
  const float top = row.top, student_top = student.top;
  LaneSums<2> sums;
  for (int64_t block = 0; block < groups; block += kGroups) {
    const int64_t end = block + kGroups < groups ? block + kGroups : groups;
    float part[2][kLanes] = {};
    for (int64_t g = block; g < end; ++g) {
      __builtin_prefetch(next_row + g * group_bytes);
      FASTQAT_INDEPENDENT
      for (int l = 0; l < kLanes; ++l) {
        const float d = logits[g * kLanes + l] - top;
        const float e = exp_nonpositive(d);
        exps[g * kLanes + l] = e;
        part[0][l] += keep_if(!(d >= 0.0f), e);
        part[1][l] += keep_if(e > 0.0f, e * (student_logits[g * kLanes + l] - student_top));
      }
    }
    sums.add(part);
  }
  const double rest = sums.total(0) + no_number(row);
  return {count_ties(row, groups) + rest, sums.total(1)};
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

}  // namespace fastqat
