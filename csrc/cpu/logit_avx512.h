// The four loops over rows of logits that take the time, for AVX-512: operation by operation what the plain loops of logit_rows.h and
// logit_pairs.h do, so that the bits are the same. Of those the compiler keeps sums in memory.
#pragma once

#include "logit_types.h"
#include "vec_math.h"

#if FASTQAT_X86_LEVELS
#include <immintrin.h>

// GCC takes the undefined operands of its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define FASTQAT_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#define FASTQAT_AVX512_INLINE FASTQAT_AVX512 inline __attribute__((always_inline))

namespace fastqat::avx512 {

FASTQAT_AVX512_INLINE __m512 all(float x) { return _mm512_set1_ps(x); }

// exp_bounded of vec_math.h.
FASTQAT_AVX512_INLINE __m512 exp_bounded(__m512 x) {
  const __m512 shifted = _mm512_fmadd_ps(x, all(kExpScale), all(kExpMagic));
  const __m512 n = shifted - all(kExpMagic);
  const __m512 r = _mm512_fnmadd_ps(n, all(kLn2Low), _mm512_fnmadd_ps(n, all(kLn2High), x));
  const __m512 r2 = r * r;
  const __m512 low = _mm512_fmadd_ps(r, all(kExpTerms[1]), all(kExpTerms[0]));
  const __m512 high = _mm512_fmadd_ps(r2, all(kExpTerms[4]), _mm512_fmadd_ps(r, all(kExpTerms[3]), all(kExpTerms[2])));
  const __m512 value = _mm512_fmadd_ps(_mm512_fmadd_ps(high, r2, low), r2, r) + all(1.0f);
  return value * _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23));
}

// kLanes fp64 sums.
struct Wide {
  __m512d low, high;
};

FASTQAT_AVX512_INLINE void widen_into(Wide& sums, __m512 part) {
  sums.low = _mm512_add_pd(sums.low, _mm512_cvtps_pd(_mm512_castps512_ps256(part)));
  sums.high = _mm512_add_pd(sums.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(part, 1)));
}

FASTQAT_AVX512_INLINE Wide no_sums() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }

// The order of fold.
FASTQAT_AVX512_INLINE double folded(const Wide& sums) {
  const __m512d eight = sums.low + sums.high;
  const __m256d four = _mm512_castpd512_pd256(eight) + _mm512_extractf64x4_pd(eight, 1);
  const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
  return two[0] + two[1];
}

FASTQAT_AVX512_INLINE __m512 load_widened(const float* x) { return _mm512_loadu_ps(x); }
FASTQAT_AVX512_INLINE __m512 load_widened(const bf16* x) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

// The whole groups of a row. first, second: the largest two of each lane.
template <class T>
FASTQAT_AVX512 void load_groups(const T* source, int64_t groups, float* logits, float* first_out, float* second_out) {
  __m512 first = all(-kInfinity), second = first;
  for (int64_t g = 0; g < groups; ++g) {
    const __m512 x = load_widened(source + g * kLanes);
    _mm512_storeu_ps(logits + g * kLanes, x);
    second = _mm512_max_ps(_mm512_min_ps(x, first), second);
    first = _mm512_max_ps(x, first);
  }
  _mm512_storeu_ps(first_out, first);
  _mm512_storeu_ps(second_out, second);
}

// kFewSums + kManySums sums: see add_groups of logit_rows.h.
template <int kFewSums, int kManySums>
struct GroupSums {
  __m512 few[kFewSums], many[kManySums];
  Wide few_wide[kFewSums], many_wide[kManySums];
};

template <int kFewSums, int kManySums, class Add>
FASTQAT_AVX512_INLINE void add_groups(GroupSums<kFewSums, kManySums>& sums, int64_t groups, const Add& add) {
  for (int s = 0; s < kFewSums; ++s) sums.few_wide[s] = no_sums();
  for (int s = 0; s < kManySums; ++s) sums.many_wide[s] = no_sums();
  for (int64_t g = 0; g < groups;) {
    const int64_t end = g + kGroups < groups ? g + kGroups : groups;
    for (int s = 0; s < kManySums; ++s) sums.many[s] = _mm512_setzero_ps();
    while (g < end) {
      for (int s = 0; s < kFewSums; ++s) sums.few[s] = _mm512_setzero_ps();
      if (g + kFewGroups <= end) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < kFewGroups; ++i) add(sums, g + i);
        g += kFewGroups;
      } else {
        for (; g < end; ++g) add(sums, g);
      }
      for (int s = 0; s < kFewSums; ++s) widen_into(sums.few_wide[s], sums.few[s]);
    }
    for (int s = 0; s < kManySums; ++s) widen_into(sums.many_wide[s], sums.many[s]);
  }
}

struct AddStudent {
  const float* logits;
  float* exps;
  const char* next_row;
  int64_t group_bytes;
  __m512 top;

  FASTQAT_AVX512_INLINE void operator()(GroupSums<1, 2>& sums, int64_t g) const {
    _mm_prefetch(next_row + g * group_bytes, _MM_HINT_T0);
    const __m512 d = _mm512_loadu_ps(logits + g * kLanes) - top;
    const __m512 bounded = _mm512_max_ps(all(kExpLeast), d), e = exp_bounded(bounded);
    const __m512 below = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(d, _mm512_setzero_ps(), _CMP_NGE_UQ), e);
    _mm512_storeu_ps(exps + g * kLanes, e);
    sums.few[0] += below;
    sums.many[0] = _mm512_fmadd_ps(below, below, sums.many[0]);
    sums.many[1] = _mm512_fmadd_ps(e, bounded, sums.many[1]);
  }
};

FASTQAT_AVX512 inline StudentParts add_student(const LogitRow& row, const char* next_row, int64_t group_bytes, int64_t groups) {
  GroupSums<1, 2> sums;
  add_groups(sums, groups, AddStudent{row.logits, row.exps, next_row, group_bytes, all(row.top)});
  return {folded(sums.few_wide[0]), folded(sums.many_wide[0]), folded(sums.many_wide[1])};
}

struct AddTeacher {
  const float *logits, *student_logits, *student_exps;
  float* exps;
  const char* next_row;
  int64_t group_bytes;
  __m512 top, student_top;

  FASTQAT_AVX512_INLINE void operator()(GroupSums<2, 1>& sums, int64_t g) const {
    _mm_prefetch(next_row + g * group_bytes, _MM_HINT_T0);
    const __m512 d = _mm512_loadu_ps(logits + g * kLanes) - top;
    const __m512 student_d = _mm512_loadu_ps(student_logits + g * kLanes) - student_top;
    const __m512 e = exp_bounded(_mm512_max_ps(all(kExpLeast), d));
    _mm512_storeu_ps(exps + g * kLanes, e);
    sums.few[0] += e;
    sums.few[1] = _mm512_fmadd_ps(_mm512_loadu_ps(student_exps + g * kLanes), student_d - d, sums.few[1]);
    sums.many[0] = _mm512_fmadd_ps(e, student_d, sums.many[0]);
  }
};

FASTQAT_AVX512 inline TeacherSums add_teacher(const LogitRow& row, const LogitRow& student, const char* next_row, int64_t group_bytes,
                                              int64_t groups) {
  GroupSums<2, 1> sums;
  const __m512 top = all(row.top), student_top = all(student.top);
  add_groups(sums, groups, AddTeacher{row.logits, student.logits, student.exps, row.exps, next_row, group_bytes, top, student_top});
  return {folded(sums.few_wide[0]), folded(sums.many_wide[0]), folded(sums.few_wide[1])};
}

FASTQAT_AVX512 inline double add_distance(const LogitRow& student, const LogitRow& teacher, float scale, int64_t groups) {
  Wide sums = no_sums();
  for (int64_t block = 0; block < groups; block += kGroups) {
    const int64_t end = block + kGroups < groups ? block + kGroups : groups;
    __m512 part = _mm512_setzero_ps();
    for (int64_t i = block * kLanes; i < end * kLanes; i += kLanes) {
      const __m512 own = _mm512_loadu_ps(student.exps + i), other = _mm512_loadu_ps(teacher.exps + i);
      const __m512 difference = _mm512_fnmadd_ps(all(scale), other, own);
      part = _mm512_fmadd_ps(difference, difference, part);
    }
    widen_into(sums, part);
  }
  return folded(sums);
}

}  // namespace fastqat::avx512

#pragma GCC diagnostic pop
#endif
