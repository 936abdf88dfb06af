// What the loops of fake quantization on the CPU share: walking the rows or columns of a task, and the choice of an instance by type.
// ../fake_quant.h has the maths of an element, partition.h the cut into tasks; loops are compiled once per instruction-set level.
#pragma once

#include "fake_quant_ranges.h"
#include "levels.h"

namespace fastqat {
namespace {

// Calls body(offset, n, range) for runs of elements.
template <class Body>
FASTQAT_INLINE void rows_of(const Job& job, const Tile& tile, const Body& body) {
  for (int64_t row = tile.row; row < tile.row_end; ++row) {
    const RowRange range = {read_range(job, scale_of_row(job.cut, row))};
    body(row * job.cut.columns + tile.column, tile.column_end - tile.column, range);
  }
}

template <bool kReciprocal, bool kZeroPoint, class Body>
FASTQAT_INLINE void columns_of(const Job& job, const Tile& tile, const Body& body) {
  const Partition& cut = job.cut;
  ColumnRanges<Body::kPerWord, kReciprocal, kZeroPoint> ranges;
  for (int64_t block = tile.block; block < tile.block_end; ++block)
    for (int64_t column = tile.column; column < tile.column_end; column += cut.slice) {
      const int64_t n = at_most(tile.column_end - column, cut.slice);
      ranges.fill(job, block, column, n);
      for (int64_t row = tile.row; row < tile.row_end; ++row)
        body(block * cut.block_size + row * cut.columns + column, columns_of_row(cut, row, column, n), ranges);
    }
}

template <bool kReciprocal, class Body>
FASTQAT_INLINE void for_each_run(const Job& job, int64_t begin, int64_t end, const Body& body) {
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    if (!job.cut.by_column)
      rows_of(job, tile, body);
    else if (job.zero_point)
      columns_of<kReciprocal, true>(job, tile, body);
    else
      columns_of<kReciprocal, false>(job, tile, body);
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

}  // namespace
}  // namespace fastqat
