// The sums over one row of logits from which every per-sample score is finished: plain loops over groups of kLanes classes.
//
//   load_row        row -> fp32 scratch padded to whole groups; its two largest values
//   add_exponents   e_j = exp(z_j - top), and the sums over it
//
// The largest logit never enters a sum: rest = sum of e_j below the top, so that a loss of 1e-9 keeps its digits.
#pragma once

#include <cmath>
#include <type_traits>

#include "logit_avx512.h"
#include "logit_types.h"
#include "vec_math.h"

namespace fastqat {

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

template <int kHalf>
FASTQAT_INLINE void fold_top_two(float* first, float* second) {
  for (int l = 0; l < kHalf; ++l) {
    second[l] = larger(larger(second[l], second[l + kHalf]), smaller(first[l], first[l + kHalf]));
    first[l] = larger(first[l], first[l + kHalf]);
  }
  if constexpr (kHalf > 1) fold_top_two<kHalf / 2>(first, second);
}

// What stands beyond the end of a row: far enough below the top to count for nothing, and finite, unless the row has no top.
FASTQAT_INLINE float padding(float top) { return top - larger(200.0f, 0.5f * larger(top, -top)); }

// Copies whole groups; first, second: the largest two of each lane. NaN is copied, and never becomes the top.
template <class T>
FASTQAT_INLINE void load_groups(const T* __restrict source, int64_t groups, float* __restrict logits, float (&first)[kLanes],
                                float (&second)[kLanes]) {
#if FASTQAT_X86_LEVELS
  if constexpr (!std::is_same_v<T, fp16>) {
    if (cpu_level() == Level::avx512) return avx512::load_groups(source, groups, logits, first, second);
  }
#endif
  for (int l = 0; l < kLanes; ++l) first[l] = second[l] = -kInfinity;
  for (int64_t i = 0; i < groups * kLanes; i += kLanes) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      const float x = widen(source[i + l]);
      logits[i + l] = x;
      second[l] = larger(smaller(x, first[l]), second[l]);
      first[l] = larger(x, first[l]);
    }
  }
}

template <class T>
FASTQAT_INLINE void load_row(const char* row, int64_t classes, LogitRow& out) {
  const T* __restrict source = reinterpret_cast<const T*>(row);
  float* __restrict logits = out.logits;
  float first[kLanes], second[kLanes];
  const int64_t whole = classes / kLanes * kLanes;
  load_groups(source, whole / kLanes, logits, first, second);
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
  if (whole < classes)
    for (int64_t i = classes; i < whole + kLanes; ++i) logits[i] = padding(out.top);
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

FASTQAT_INLINE StudentSums finish_sums(const LogitRow& row, const StudentParts& parts, int64_t groups) {
  const double rest = parts.rest + no_number(row), ties = count_ties(row, groups);
  return {rest, parts.rest_sq, parts.weighted, ties, ties + rest, std::log1p(ties - 1 + rest)};
}

// Calls step(g, few, many) for every group g: `few` and `many` are fp32 lanes of the sums with the same names, which get them after
// kFewGroups and after kGroups groups: the fewer, the smaller the rounding errors.
template <int kFewSums, int kManySums, class Step>
FASTQAT_INLINE void add_groups(int64_t groups, LaneSums<kFewSums>& few_sums, LaneSums<kManySums>& many_sums, const Step& step) {
  for (int64_t block = 0; block < groups; block += kGroups) {
    const int64_t block_end = block + kGroups < groups ? block + kGroups : groups;
    float many[kManySums][kLanes] = {};
    for (int64_t begin = block; begin < block_end; begin += kFewGroups) {
      const int64_t end = begin + kFewGroups < block_end ? begin + kFewGroups : block_end;
      float few[kFewSums][kLanes] = {};
      for (int64_t g = begin; g < end; ++g) step(g, few, many);
      few_sums.add(few);
    }
    many_sums.add(many);
  }
}

// next_row is fetched into the cache while this row is worked on.
FASTQAT_INLINE StudentSums add_exponents(const LogitRow& row, const char* next_row, int64_t group_bytes, int64_t groups) {
#if FASTQAT_X86_LEVELS
  if (cpu_level() == Level::avx512) return finish_sums(row, avx512::add_student(row, next_row, group_bytes, groups), groups);
#endif
  const float* __restrict logits = row.logits;
  float* __restrict exps = row.exps;
  const float top = row.top;
  LaneSums<1> few_sums;
  LaneSums<2> many_sums;
  add_groups(groups, few_sums, many_sums, [&](int64_t g, float (&few)[1][kLanes], float (&many)[2][kLanes]) FASTQAT_INLINE_LAMBDA {
    __builtin_prefetch(next_row + g * group_bytes);
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      const float d = logits[g * kLanes + l] - top;
      const float bounded = larger(kExpLeast, d), e = exp_bounded(bounded);
      const float below_top = keep_if(!(d >= 0.0f), e);  // NaN goes into the sum
      exps[g * kLanes + l] = e;
      few[0][l] += below_top;
      many[0][l] = fused(below_top, below_top, many[0][l]);
      many[1][l] = fused(e, bounded, many[1][l]);
    }
  });
  return finish_sums(row, {few_sums.total(0), many_sums.total(0), many_sums.total(1)}, groups);
}

}  // namespace fastqat
