// The loops over x and grad_y behind the gradient norms of affine layers: along rows of neighbours, or down columns of neighbours. They
// are compiled for every level and storage type (affine_level_rows.h, affine_level_columns.h); a job takes its own set from affine_loops().
//
// Sums are fp32 over a fixed number of terms, in an order that no level changes.
#pragma once

#include "levels.h"

namespace fastqat {

constexpr int64_t kRowRun = 64;  // most rows of one call of a column loop, which adds up in fp32

// Accumulators of a column loop lie side by side, each on a 64-byte boundary: vectors across two cache lines would halve its speed.
inline int64_t padded(int64_t columns) { return ceil_div(columns, kLanes) * kLanes; }

// Rows that lie `step` elements apart.
struct RowBlock {
  const void* first;
  int64_t step, rows;
};

// x_hat of a row is (x - shift) * scale + offset.
struct Standard {
  float shift, scale, offset;
};

// With d = x - shift, in products at most `limit`. By row: sums in fp64 of n elements, [2] or [4][stride] of which each row has one, a
// shift per row. By column: what is added to [2] or [4][padded(columns)], a shift per column.
struct AffineLoops {
  // d, d^2
  void (*row_moments)(RowBlock x, int64_t n, const float* shift, double* sums, int64_t stride);
  // grad_y, grad_y d
  void (*row_products)(RowBlock x, RowBlock grad_y, int64_t n, const float* shift, float limit, double* sums, int64_t stride);
  void (*column_products)(RowBlock x, RowBlock grad_y, int64_t columns, const float* shift, float limit, float* sums);
  // grad_y, grad_y d, d, d^2
  void (*row_group)(RowBlock x, RowBlock grad_y, int64_t n, const float* shift, double* sums, int64_t stride);
  void (*column_group)(RowBlock x, RowBlock grad_y, int64_t columns, const float* shift, float* sums);
  // grad_y, grad_y x_hat; one Standard per row
  void (*standard_products)(RowBlock x, RowBlock grad_y, int64_t columns, const Standard* standard, float* sums);
  // Every `step`-th element from x on, as fp32.
  void (*widened)(const void* x, int64_t step, int64_t count, float* values);
};

const AffineLoops& affine_loops(ScalarType type);

}  // namespace fastqat
