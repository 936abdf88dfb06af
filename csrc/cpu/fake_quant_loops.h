// The loops of fake quantization on the CPU: forward, codes and backward, one pass over the data each, compiled once per
// instruction-set level. ../fake_quant.h has the maths of an element, partition.h the cut into tasks.
#pragma once

#include "../fake_quant.h"
#include "levels.h"
#include "partition.h"
#include "storage.h"

namespace fastqat {
namespace {

struct Job {
  const void* x;
  const void* grad_y;
  void* out;                // x_hat, grad_x or codes
  const float* scale;       // one per row channel, or one per column
  const float* zero_point;  // null: all zero
  double* scale_sums;       // partials [row task or row][column task or column]
  double* zero_point_sums;  // the same; null: not wanted
  ScalarType type, code_type;
  int64_t channels;
  float qmin, qmax;
  bool reciprocal;
  Partition cut;
};

// The range of element i of a block: one for a row, one per element for columns. Both hold values, not the job: a store of floats
// could change a float of the job, and the compiler would read it again for every element.
struct RowRange {
  QuantRange range;
  FASTQAT_INLINE QuantRange operator()(int64_t) const { return range; }
};

struct ColumnRange {
  const float* scale;
  const float* zero_point;
  float qmin, qmax;
  FASTQAT_INLINE QuantRange operator()(int64_t i) const { return make_range(scale[i], zero_point[i], qmin, qmax); }
};

alignas(64) constexpr float kZeros[kBlock] = {};

FASTQAT_INLINE RowRange row_range(const Job& job, int64_t i) {
  return {make_range(job.scale[i], job.zero_point ? job.zero_point[i] : 0.0f, job.qmin, job.qmax)};
}

FASTQAT_INLINE ColumnRange column_range(const Job& job, int64_t i) {
  return {job.scale + i, job.zero_point ? job.zero_point + i : kZeros, job.qmin, job.qmax};
}

// Calls body(offset, n, range) for blocks of at most kBlock elements.
template <class Body>
FASTQAT_INLINE void for_each_block(const Job& job, int64_t begin, int64_t end, const Body& body) {
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    for (int64_t row = tile.row; row < tile.row_end; ++row)
      for (int64_t column = tile.column; column < tile.column_end; column += kBlock) {
        const int64_t left = tile.column_end - column, n = left < kBlock ? left : int64_t{kBlock};
        const int64_t offset = row * job.cut.columns + column;
        if (job.cut.by_column)
          body(offset, n, column_range(job, column));
        else
          body(offset, n, row_range(job, row % job.channels));
      }
  }
}

template <class T, bool kReciprocal>
struct ForwardBody {
  const Job& job;
  template <class RangeAt>
  FASTQAT_INLINE void operator()(int64_t offset, int64_t n, const RangeAt& range) const {
    alignas(64) float in[kBlock], result[kBlock];
    T* const out = static_cast<T*>(job.out) + offset;
    const float* const x = load_block(static_cast<const T*>(job.x) + offset, n, in);
    float* const x_hat = output_block(out, result);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) x_hat[i] = fake_quant<kReciprocal>(x[i], range(i));
    store_block(out, n, x_hat);
  }
};

template <class T, class C, bool kReciprocal>
struct CodesBody {
  const Job& job;
  template <class RangeAt>
  FASTQAT_INLINE void operator()(int64_t offset, int64_t n, const RangeAt& range) const {
    alignas(64) float in[kBlock];
    C* const codes = static_cast<C*>(job.out) + offset;
    const float* const x = load_block(static_cast<const T*>(job.x) + offset, n, in);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<C>(static_cast<int32_t>(code<kReciprocal>(x[i], range(i))));
  }
};

// Gradients of one block. The terms of the sums go to scratch in the first-level cache, so that this loop has no carried
// dependence and vectorises whole; kAdd adds them to what is there. grad_x may be grad_y itself.
template <bool kReciprocal, bool kZeroPoint, bool kAdd, class RangeAt>
FASTQAT_INLINE void block_gradients(const float* x, const float* grad_y, float* grad_x, int64_t n, const RangeAt& range, float* scale,
                                    float* zero_point) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const QuantGrad g = fake_quant_grad<kReciprocal>(x[i], grad_y[i], range(i));
    grad_x[i] = g.x;
    scale[i] = kAdd ? scale[i] + g.scale : g.scale;
    if (kZeroPoint) zero_point[i] = kAdd ? zero_point[i] + g.zero_point : g.zero_point;
  }
}

// Sums of a row: kLanes fp64 lanes; kRun terms of a lane are added in fp32 first, an error of at most 7 fp32 roundings (terms beyond
// 4e37 could overflow there). Everything in fp64 costs a third more time.
constexpr int kRun = 8;

FASTQAT_INLINE void sum_block(const float* terms, int64_t n, double* lanes) {
  int64_t i = 0;
  for (; i + kRun * kLanes <= n; i += kRun * kLanes) {
    float run[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const float* const t = terms + i + l;
      run[l] = ((t[0] + t[kLanes]) + (t[2 * kLanes] + t[3 * kLanes])) + ((t[4 * kLanes] + t[5 * kLanes]) + (t[6 * kLanes] + t[7 * kLanes]));
    }
    for (int l = 0; l < kLanes; ++l) lanes[l] += run[l];
  }
  for (; i < n; ++i) lanes[i % kLanes] += terms[i];
}

FASTQAT_INLINE double fold(const double* lanes) {
  double total = 0;
  for (int l = 0; l < kLanes; ++l) total += lanes[l];
  return total;
}

// Scratch of one task.
struct Scratch {
  alignas(64) float x[kBlock], grad_y[kBlock], grad_x[kBlock], scale[kBlock], zero_point[kBlock];
};

template <class T, bool kReciprocal, bool kZeroPoint, bool kAdd, class RangeAt>
FASTQAT_INLINE void backward_block(const Job& job, int64_t offset, int64_t n, const RangeAt& range, Scratch& scratch) {
  T* const out = static_cast<T*>(job.out) + offset;
  const float* const x = load_block(static_cast<const T*>(job.x) + offset, n, scratch.x);
  const float* const grad_y = load_block(static_cast<const T*>(job.grad_y) + offset, n, scratch.grad_y);
  float* const grad_x = output_block(out, scratch.grad_x);
  block_gradients<kReciprocal, kZeroPoint, kAdd>(x, grad_y, grad_x, n, range, scratch.scale, scratch.zero_point);
  store_block(out, n, grad_x);
}

// Rows: one pair of partials per (row, column task).
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void backward_rows(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch;
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const RowRange range = row_range(job, row % job.channels);
      double scale[kLanes] = {}, zero_point[kLanes] = {};
      for (int64_t column = tile.column; column < tile.column_end; column += kBlock) {
        const int64_t left = tile.column_end - column, n = left < kBlock ? left : int64_t{kBlock};
        backward_block<T, kReciprocal, kZeroPoint, false>(job, row * job.cut.columns + column, n, range, scratch);
        sum_block(scratch.scale, n, scale);
        if (kZeroPoint) sum_block(scratch.zero_point, n, zero_point);
      }
      const int64_t partial = row * job.cut.column_tasks + task % job.cut.column_tasks;
      job.scale_sums[partial] = fold(scale);
      if (kZeroPoint) job.zero_point_sums[partial] = fold(zero_point);
    }
  }
}

FASTQAT_INLINE void flush(float* terms, int64_t n, double* sums) {
  for (int64_t i = 0; i < n; ++i) {
    sums[i] += terms[i];
    terms[i] = 0;
  }
}

// Columns: a task adds up its rows column by column, kRun of them in fp32; one pair of partials per (row task, column).
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void backward_columns(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch;
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    const int64_t n = tile.column_end - tile.column;
    const int64_t partial = task / job.cut.column_tasks * job.cut.columns + tile.column;
    for (int64_t i = 0; i < n; ++i) scratch.scale[i] = scratch.zero_point[i] = 0;
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const int64_t offset = row * job.cut.columns + tile.column;
      backward_block<T, kReciprocal, kZeroPoint, true>(job, offset, n, column_range(job, tile.column), scratch);
      if ((row - tile.row) % kRun != kRun - 1 && row + 1 < tile.row_end) continue;
      flush(scratch.scale, n, job.scale_sums + partial);
      if (kZeroPoint) flush(scratch.zero_point, n, job.zero_point_sums + partial);
    }
  }
}

// Runtime type and semantics -> one instance of the always-inlined loops. A macro, since a lambda would not carry the target of
// the level it is called from.
#define FASTQAT_BY_TYPE(CALL)                                         \
  switch (job.type) {                                                 \
    case ScalarType::BFloat16:                                        \
      return job.reciprocal ? CALL(bf16, true) : CALL(bf16, false);   \
    case ScalarType::Half:                                            \
      return job.reciprocal ? CALL(fp16, true) : CALL(fp16, false);   \
    default:                                                          \
      return job.reciprocal ? CALL(float, true) : CALL(float, false); \
  }

FASTQAT_INLINE void forward(const Job& job, int64_t begin, int64_t end){
#define FASTQAT_FORWARD(T, R) for_each_block(job, begin, end, ForwardBody<T, R>{job})
    FASTQAT_BY_TYPE(FASTQAT_FORWARD)}

FASTQAT_INLINE void codes(const Job& job, int64_t begin, int64_t end){
#define FASTQAT_CODES(T, R)                                                                              \
  (job.code_type == ScalarType::Char    ? for_each_block(job, begin, end, CodesBody<T, int8_t, R>{job})  \
   : job.code_type == ScalarType::Byte  ? for_each_block(job, begin, end, CodesBody<T, uint8_t, R>{job}) \
   : job.code_type == ScalarType::Short ? for_each_block(job, begin, end, CodesBody<T, int16_t, R>{job}) \
                                        : for_each_block(job, begin, end, CodesBody<T, int32_t, R>{job}))
    FASTQAT_BY_TYPE(FASTQAT_CODES)}

FASTQAT_INLINE void backward(const Job& job, int64_t begin, int64_t end){
#define FASTQAT_BACKWARD(T, R)                                                                                                  \
  (job.cut.by_column                                                                                                            \
       ? (job.zero_point_sums ? backward_columns<T, R, true>(job, begin, end) : backward_columns<T, R, false>(job, begin, end)) \
       : (job.zero_point_sums ? backward_rows<T, R, true>(job, begin, end) : backward_rows<T, R, false>(job, begin, end)))
    FASTQAT_BY_TYPE(FASTQAT_BACKWARD)}

FASTQAT_LEVELS(forward) FASTQAT_LEVELS(codes) FASTQAT_LEVELS(backward)

}  // namespace
}  // namespace fastqat
