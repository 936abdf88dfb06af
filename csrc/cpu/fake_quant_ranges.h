// Which range an element has: one for a whole row, or one per column.
#pragma once

#include "../fake_quant.h"
#include "fake_quant_job.h"
#include "storage.h"

namespace fastqat {
namespace {

// The range of element `part` of word i. Both kinds hold values, not the job: a store of floats could change a float of the job, and
// the compiler would read it again for every element.
struct RowRange {
  QuantRange range;
  FASTQAT_INLINE QuantRange operator()(int64_t, int) const { return range; }
};

// A scale or zero point; a NaN without payload, as round_bf16() wants it.
FASTQAT_INLINE float read_parameter(float value) { return value == value ? value : __builtin_nanf(""); }

FASTQAT_INLINE QuantRange read_range(const Job& job, int64_t i) {
  return make_range(read_parameter(job.scale[i]), job.zero_point ? read_parameter(job.zero_point[i]) : 0.0f, job.qmin, job.qmax);
}

// The ranges of a slice of columns, one per element, in the order of words: all first elements, then all second ones. Without a zero
// point the bounds are the same for all.
template <int kPerWord, bool kReciprocal, bool kZeroPoint>
struct ColumnRanges {
  using Values = float[kSlice];
  static constexpr int64_t kWords = kSlice / kPerWord;
  alignas(64) Values scale, inv, zero_point, lo, hi;
  float qmin, qmax;

  FASTQAT_INLINE QuantRange operator()(int64_t word, int part) const {
    const int64_t i = part * kWords + word;
    return {scale[i], kReciprocal ? inv[i] : 0.0f, kZeroPoint ? zero_point[i] : 0.0f, kZeroPoint ? lo[i] : qmin, kZeroPoint ? hi[i] : qmax};
  }

  FASTQAT_INLINE void fill(const Job& job, int64_t block, int64_t column, int64_t n) {
    const Partition& cut = job.cut;
    const int64_t pattern = n / cut.copies, first = block * cut.channels + column / cut.inner;
    qmin = job.qmin;
    qmax = job.qmax;
    if (cut.inner == 1) {
#pragma GCC ivdep
      for (int64_t i = 0; i < pattern; ++i) set(i, read_range(job, first + i));
    } else {
      for (int64_t i = 0, c = first; i < pattern; ++c) {
        const QuantRange range = read_range(job, c);
        for (const int64_t end = i + cut.inner; i < end; ++i) set(i, range);
      }
    }
    arrange(scale, pattern, n);
    if (kReciprocal) arrange(inv, pattern, n);
    if (!kZeroPoint) return;
    arrange(zero_point, pattern, n);
    arrange(lo, pattern, n);
    arrange(hi, pattern, n);
  }

 private:
  FASTQAT_INLINE void set(int64_t i, const QuantRange& q) {
    scale[i] = q.scale;
    if (kReciprocal) inv[i] = q.inv;
    if (!kZeroPoint) return;
    zero_point[i] = q.zero_point;
    lo[i] = q.lo;
    hi[i] = q.hi;
  }

  // The first `pattern` values repeated up to n, then put into the order of words.
  FASTQAT_INLINE static void arrange(Values& values, int64_t pattern, int64_t n) {
    for (int64_t done = pattern; done < n; done *= 2) std::memcpy(values + done, values, static_cast<size_t>(at_most(done, n - done)) * 4);
    if (kPerWord == 1) return;
    Values linear;
    std::memcpy(linear, values, static_cast<size_t>(n) * 4);
    for (int64_t i = 0; i < ceil_div(n, 2); ++i) {
      values[i] = linear[2 * i];
      values[kWords + i] = linear[2 * i + 1];
    }
  }
};

}  // namespace
}  // namespace fastqat
