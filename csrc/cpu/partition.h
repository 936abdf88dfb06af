// How [blocks, outer, channels, inner] is cut into tasks. The cut depends on the shape only, never on threads or instruction sets, so
// that sums built from per-task partials are always the same.
#pragma once

#include "../common.h"
#include "../fake_quant.h"

namespace fastqat {

// The tensor in storage order is `blocks` matrices of rows * columns; the last row of a matrix may be shorter.
//   rows     runs of `inner` neighbours share one scale: one matrix, a row per run.
//   columns  inner is short, so neighbours have other scales: a matrix per block, and a column is one of
//            copies * channels * inner. Short rows are laid side by side (`copies` of them), so that vector loops have something to do.
// Sums are partials of shape [scale_blocks][sum_rows][channels][sum_run], to be added over sum_rows and sum_run.
struct Partition {
  bool by_column;
  int64_t blocks, rows, columns, block_size;
  int64_t channels, inner, copies;
  int64_t slice;  // columns that share one expanded set of scales: whole channels
  int64_t task_blocks, task_rows, task_columns;
  int64_t block_tasks, row_tasks, column_tasks;
  int64_t scale_blocks, sum_rows, sum_run;

  int64_t tasks() const { return block_tasks * row_tasks * column_tasks; }
  int64_t scales() const { return scale_blocks * channels; }
  int64_t partials() const { return scales() * sum_rows * sum_run; }
};

constexpr int64_t kShortRun = 32;  // below this, a run is too short for a vector loop of its own
constexpr int64_t kSlice = 4096;   // at most
constexpr int64_t kCachedSlice =
    2048;  // of tensors that fit a cache: slices of a row there stay near; from memory whole rows stream better
constexpr int64_t kCached = 1 << 22;
constexpr int64_t kCopied = 1024;     // columns that copies make at most
constexpr int64_t kMostCopies = 16;   // makes the width a multiple of 16, whatever the number of columns
constexpr int64_t kMaxRowTasks = 64;  // bounds the partials of column sums to 64 per scale

inline int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
inline int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }

inline void cut_rows(Partition& p, int64_t outer) {
  p.rows = p.scale_blocks * outer * p.channels;
  p.columns = p.slice = p.block_size = p.inner;
  p.blocks = p.task_blocks = p.block_tasks = 1;
  p.block_size = p.rows * p.columns;
  p.task_columns = at_least_one(at_most(p.columns, kChunk));
  p.task_rows = kChunk / p.task_columns;
  p.row_tasks = ceil_div(p.rows, p.task_rows);
  p.column_tasks = ceil_div(p.columns, p.task_columns);
  p.sum_rows = outer;
  p.sum_run = p.column_tasks;
}

inline void cut_columns(Partition& p, int64_t outer) {
  const int64_t pattern = p.channels * p.inner;
  const int64_t most = p.scale_blocks * outer * pattern > kCached ? kSlice : kCachedSlice;
  while (2 * p.copies <= at_most(kMostCopies, outer) && 2 * p.copies * pattern <= kCopied) p.copies *= 2;
  p.columns = pattern * p.copies;
  p.slice = at_most(p.columns, most / p.inner * p.inner);
  p.blocks = p.scale_blocks;
  p.rows = ceil_div(outer, p.copies);
  p.block_size = outer * pattern;
  const int64_t fill = ceil_div(2 * kChunk, p.slice), bound = ceil_div(p.rows, kMaxRowTasks);
  p.task_rows = at_least_one(at_most(fill > bound ? fill : bound, p.rows));
  p.task_columns = at_most(p.columns, p.slice * at_least_one(kChunk / (p.slice * p.task_rows)));
  p.row_tasks = ceil_div(p.rows, p.task_rows);
  p.column_tasks = ceil_div(p.columns, p.task_columns);
  p.task_blocks = p.row_tasks * p.column_tasks > 1 ? 1 : at_least_one(kChunk / at_least_one(p.block_size));
  p.block_tasks = ceil_div(p.blocks, p.task_blocks);
  p.sum_rows = p.row_tasks;
  p.sum_run = 1;
}

inline Partition make_partition(int64_t blocks, int64_t outer, int64_t channels, int64_t inner) {
  Partition p{};
  // One channel per block, or one run per channel: the blocks are channels of a single block.
  const bool merged = channels == 1 || outer == 1;
  p.inner = channels == 1 ? outer * inner : inner;
  p.channels = merged ? blocks * channels : channels;
  p.scale_blocks = merged ? 1 : blocks;
  p.copies = 1;
  p.by_column = p.channels > 1 && p.inner > 0 && p.inner < kShortRun;
  if (p.by_column)
    cut_columns(p, merged ? 1 : outer);
  else
    cut_rows(p, merged ? 1 : outer);
  return p;
}

struct Tile {
  int64_t block, block_end, row, row_end, column, column_end;
};

FASTQAT_INLINE Tile tile_of(const Partition& p, int64_t task) {
  const int64_t column = task % p.column_tasks * p.task_columns;
  task /= p.column_tasks;
  const int64_t row = task % p.row_tasks * p.task_rows;
  const int64_t block = task / p.row_tasks * p.task_blocks;
  return {block,  at_most(block + p.task_blocks, p.blocks),   row, at_most(row + p.task_rows, p.rows),
          column, at_most(column + p.task_columns, p.columns)};
}

// The scale of a row, where the cut is by rows.
FASTQAT_INLINE int64_t scale_of_row(const Partition& p, int64_t row) {
  if (p.scale_blocks == 1) return p.sum_rows == 1 ? row : row % p.channels;
  return row / (p.sum_rows * p.channels) * p.channels + row % p.channels;
}

// Elements of columns [column, column + n) that row `row` of a block really has.
FASTQAT_INLINE int64_t columns_of_row(const Partition& p, int64_t row, int64_t column, int64_t n) {
  const int64_t left = p.block_size - row * p.columns - column;
  return left < n ? left : n;
}

}  // namespace fastqat
