// How [outer, channels, inner] is cut into tasks. The cut depends on the shape only, never on threads or instruction sets, so that
// sums built from per-task partials are always the same.
#pragma once

#include "../common.h"

namespace fastqat {

// rows: runs of `inner` neighbours share one scale. columns: inner is short, so neighbours have other scales and the scale is
// expanded to one value per column; a column is one of channels * inner.
struct Partition {
  bool by_column;
  int64_t rows, columns;  // the matrix in storage order
  int64_t task_rows, task_columns;
  int64_t row_tasks, column_tasks;
  int64_t tasks() const { return row_tasks * column_tasks; }
};

constexpr int64_t kShortRun = 32;  // below this, a run is too short for a vector loop of its own
constexpr int64_t kColumnBlock = 512;
constexpr int64_t kMaxRowTasks = 64;  // bounds the partials of column sums to 64 per scale

inline Partition make_partition(int64_t outer, int64_t channels, int64_t inner) {
  Partition p{};
  p.by_column = channels > 1 && inner < kShortRun;
  p.rows = channels == 1 ? 1 : p.by_column ? outer : outer * channels;
  p.columns = channels == 1 ? outer * inner : p.by_column ? channels * inner : inner;
  p.task_columns = p.columns < kChunk ? p.columns : kChunk;
  p.task_rows = p.columns < kChunk ? kChunk / (p.columns > 0 ? p.columns : 1) : 1;
  if (p.by_column) {
    p.task_columns = p.columns < kColumnBlock ? p.columns : kColumnBlock;
    const int64_t fill = ceil_div(kChunk, p.task_columns > 0 ? p.task_columns : 1);
    const int64_t bound = ceil_div(p.rows, kMaxRowTasks);
    p.task_rows = fill > bound ? fill : bound;
  }
  p.row_tasks = ceil_div(p.rows, p.task_rows);
  p.column_tasks = p.task_columns > 0 ? ceil_div(p.columns, p.task_columns) : 0;
  return p;
}

struct Tile {
  int64_t row, row_end, column, column_end;
};

FASTQAT_INLINE Tile tile_of(const Partition& p, int64_t task) {
  const int64_t row = task / p.column_tasks * p.task_rows;
  const int64_t column = task % p.column_tasks * p.task_columns;
  const int64_t row_end = row + p.task_rows;
  const int64_t column_end = column + p.task_columns;
  return {row, row_end < p.rows ? row_end : p.rows, column, column_end < p.columns ? column_end : p.columns};
}

}  // namespace fastqat
