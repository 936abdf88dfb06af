// The column loops of affine_loops.h for one level, after the row loops, which are included here, and in the same way as those. Each column
// is a lane of its own, so that plain loops are vectorised. Rows are taken one by one: the hardware follows two streams well, and several
// rows in turn, which would read and write the accumulators less often, not at all.
#include "affine_level_rows.h"

template <class T>
FASTQAT_INNER void add_products(const T* x, const T* grad_y, int64_t columns, const float* __restrict shift, float limit,
                                float* __restrict grad, float* __restrict product) {
  FASTQAT_INDEPENDENT
  for (int64_t c = 0; c < columns; ++c) {
    const float g = widen(grad_y[c]), d = widen(x[c]) - shift[c];
    grad[c] += g;
    product[c] += g * (limit < d ? limit : d);
  }
}

template <class T>
FASTQAT_INNER void add_group(const T* x, const T* grad_y, int64_t columns, const float* __restrict shift, float* __restrict grad,
                             float* __restrict product, float* __restrict sum, float* __restrict square) {
  FASTQAT_INDEPENDENT
  for (int64_t c = 0; c < columns; ++c) {
    const float g = widen(grad_y[c]), d = widen(x[c]) - shift[c];
    grad[c] += g;
    product[c] += g * d;
    sum[c] += d;
    square[c] += d * d;
  }
}

template <class T>
FASTQAT_INNER void add_standard(const T* x, const T* grad_y, int64_t columns, const Standard standard, float* __restrict grad,
                                float* __restrict product) {
  FASTQAT_INDEPENDENT
  for (int64_t c = 0; c < columns; ++c) {
    const float g = widen(grad_y[c]);
    grad[c] += g;
    product[c] += g * ((widen(x[c]) - standard.shift) * standard.scale + standard.offset);
  }
}

template <class T>
FASTQAT_TARGET void column_products(RowBlock x, RowBlock grad_y, int64_t columns, const float* shift, float limit, float* sums) {
  for (int64_t r = 0; r < x.rows; ++r)
    add_products(row_at<T>(x, r), row_at<T>(grad_y, r), columns, shift, limit, sums, sums + padded(columns));
}

template <class T>
FASTQAT_TARGET void column_group(RowBlock x, RowBlock grad_y, int64_t columns, const float* shift, float* sums) {
  float *const product = sums + padded(columns), *const sum = product + padded(columns), *const square = sum + padded(columns);
  for (int64_t r = 0; r < x.rows; ++r) add_group(row_at<T>(x, r), row_at<T>(grad_y, r), columns, shift, sums, product, sum, square);
}

template <class T>
FASTQAT_TARGET void standard_products(RowBlock x, RowBlock grad_y, int64_t columns, const Standard* standard, float* sums) {
  for (int64_t r = 0; r < x.rows; ++r)
    add_standard(row_at<T>(x, r), row_at<T>(grad_y, r), columns, standard[r], sums, sums + padded(columns));
}

template <class T>
void widened(const void* x, int64_t step, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = widen(static_cast<const T*>(x)[i * step]);
}

template <class T>
constexpr AffineLoops kLoops = {row_moments<T>,  row_products<T>,      column_products<T>, row_group<T>,
                                column_group<T>, standard_products<T>, widened<T>};
