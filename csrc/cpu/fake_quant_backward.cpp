// The backward of fake quantization on the CPU: one pass over x and grad_y writes grad_x and adds up the gradients of the scales and
// zero points. Sums are deterministic: the order of additions depends on the shape only, and every instruction set has kLanes lanes.
//
// Terms are first added up in fp32, at most 15 roundings deep (terms beyond 2e37 could overflow there), the rest in fp64. Everything in
// fp64 costs a third more time.
#include "fake_quant_loops.h"

namespace fastqat {
namespace {

struct WordGrad {
  uint32_t x;
  QuantGrad low, high;
};

template <class T, bool kReciprocal, class RangeAt>
FASTQAT_INLINE WordGrad word_gradient(uint32_t x, uint32_t grad_y, int64_t i, const RangeAt& range) {
  using P = Packing<T>;
  const QuantGrad low = fake_quant_grad<kReciprocal>(P::low(x), P::low(grad_y), range(i, 0));
  if (P::kPerWord == 1) return {P::join_exact(low.x, 0), low, {}};
  const QuantGrad high = fake_quant_grad<kReciprocal>(P::high(x), P::high(grad_y), range(i, P::kPerWord - 1));
  return {P::join_exact(low.x, high.x), low, high};
}

struct Pointers {
  const void* x;
  const void* grad_y;
  void* grad_x;
};

template <class T>
FASTQAT_INLINE Pointers pointers_at(const Job& job, int64_t offset) {
  return {static_cast<const T*>(job.x) + offset, static_cast<const T*>(job.grad_y) + offset, static_cast<T*>(job.out) + offset};
}

template <int n>
FASTQAT_INLINE float tree_sum(const float* terms) {
  if constexpr (n == 1)
    return terms[0];
  else
    return tree_sum<n / 2>(terms) + tree_sum<n - n / 2>(terms + n / 2);
}

// kVectors * kLanes words from word i on, their terms added up lane by lane as a tree. Loops over lanes are kept as loops ("unroll 1"):
// the compiler would unroll them early and then find nothing to vectorise.
template <class T, bool kReciprocal, bool kZeroPoint, int kVectors>
FASTQAT_INLINE void row_lanes(const Pointers& p, int64_t i, const RowRange& range, float* scale, float* zero_point) {
#pragma GCC ivdep
#pragma GCC unroll 1
  for (int l = 0; l < kLanes; ++l) {
    float s[kVectors], z[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t word = i + v * kLanes + l;
      const WordGrad g = word_gradient<T, kReciprocal>(load_word(p.x, word), load_word(p.grad_y, word), word, range);
      store_word(p.grad_x, word, g.x);
      s[v] = Packing<T>::kPerWord == 1 ? g.low.scale : g.low.scale + g.high.scale;
      if (kZeroPoint) z[v] = Packing<T>::kPerWord == 1 ? g.low.zero_point : g.low.zero_point + g.high.zero_point;
    }
    scale[l] = tree_sum<kVectors>(s);
    if (kZeroPoint) zero_point[l] = tree_sum<kVectors>(z);
  }
}

template <class Sum>
FASTQAT_INLINE void add_lanes(Sum* lanes, const float* terms) {
#pragma GCC unroll 1
  for (int l = 0; l < kLanes; ++l) lanes[l] += terms[l];
}

template <class Sum>
FASTQAT_INLINE Sum fold(const Sum* lanes) {
  Sum half[8], quarter[4];
#pragma GCC unroll 1
  for (int l = 0; l < 8; ++l) half[l] = lanes[l] + lanes[l + 8];
#pragma GCC unroll 1
  for (int l = 0; l < 4; ++l) quarter[l] = half[l] + half[l + 4];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// The sums of a row.
struct RowSums {
  double scale, zero_point;
};

// The next kVectors * kLanes words of a row, if there are as many left: their terms are added to the lanes.
template <class T, bool kReciprocal, bool kZeroPoint, int kVectors, class Sum>
FASTQAT_INLINE bool row_part(const Pointers& p, int64_t& i, int64_t words, const RowRange& range, Sum* scale, Sum* zero_point) {
  if (i + kVectors * kLanes > words) return false;
  alignas(64) float s[kLanes], z[kLanes];
  row_lanes<T, kReciprocal, kZeroPoint, kVectors>(p, i, range, s, z);
  add_lanes(scale, s);
  if (kZeroPoint) add_lanes(zero_point, z);
  i += kVectors * kLanes;
  return true;
}

// What is left of a row, fewer than kLanes words: one at a time.
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void row_rest(const Pointers& p, int64_t i, int64_t n, const RowRange& range, float* scale, float* zero_point) {
  constexpr int kPerWord = Packing<T>::kPerWord;
  const int64_t words = n / kPerWord;
#pragma GCC ivdep
  for (int64_t l = 0; l < words - i; ++l) {
    const WordGrad g = word_gradient<T, kReciprocal>(load_word(p.x, i + l), load_word(p.grad_y, i + l), i + l, range);
    store_word(p.grad_x, i + l, g.x);
    scale[l] += kPerWord == 1 ? g.low.scale : g.low.scale + g.high.scale;
    if (kZeroPoint) zero_point[l] += kPerWord == 1 ? g.low.zero_point : g.low.zero_point + g.high.zero_point;
  }
  if (n % kPerWord == 0) return;
  const WordGrad g = word_gradient<T, kReciprocal>(load_half(p.x, words), load_half(p.grad_y, words), words, range);
  store_half(p.grad_x, words, g.x);
  scale[kLanes - 1] += g.low.scale;
  if (kZeroPoint) zero_point[kLanes - 1] += g.low.zero_point;
}

// The long part of a row goes to fp64 lanes, 8 terms at a time, the rest of at most 7 vectors to fp32 ones.
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE RowSums backward_row(const Pointers& p, int64_t n, const RowRange& range) {
  constexpr int kVectors = 8 / Packing<T>::kPerWord;
  const int64_t words = n / Packing<T>::kPerWord;
  RowSums sums = {};
  int64_t i = 0;
  if (words >= kVectors * kLanes) {
    alignas(64) double scale[kLanes] = {}, zero_point[kLanes] = {};
    while (row_part<T, kReciprocal, kZeroPoint, kVectors>(p, i, words, range, scale, zero_point)) continue;
    sums = {fold(scale), kZeroPoint ? fold(zero_point) : 0.0};
  }
  if (i * Packing<T>::kPerWord == n) return sums;
  alignas(64) float scale[kLanes] = {}, zero_point[kLanes] = {};
  if (kVectors == 8) row_part<T, kReciprocal, kZeroPoint, 4>(p, i, words, range, scale, zero_point);
  row_part<T, kReciprocal, kZeroPoint, 2>(p, i, words, range, scale, zero_point);
  row_part<T, kReciprocal, kZeroPoint, 1>(p, i, words, range, scale, zero_point);
  if (i * Packing<T>::kPerWord < n) row_rest<T, kReciprocal, kZeroPoint>(p, i, n, range, scale, zero_point);
  sums.scale += fold(scale);
  if (kZeroPoint) sums.zero_point += fold(zero_point);
  return sums;
}

// One pair of partials per (row, column task).
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void backward_rows(const Job& job, int64_t begin, int64_t end) {
  const Partition& cut = job.cut;
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(cut, task);
    const int64_t column_task = task % cut.column_tasks;
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const RowRange range = {read_range(job, scale_of_row(cut, row))};
      const Pointers p = pointers_at<T>(job, row * cut.columns + tile.column);
      const RowSums sums = backward_row<T, kReciprocal, kZeroPoint>(p, tile.column_end - tile.column, range);
      job.scale_sums.put(row * cut.column_tasks + column_task, sums.scale);
      if (kZeroPoint) job.zero_point_sums.put(row * cut.column_tasks + column_task, sums.zero_point);
    }
  }
}

constexpr int64_t kRun = 8;  // rows whose terms are added up in fp32

// Terms of a slice in the order of words, and the sums in fp64 of what flush() leaves of a channel.
struct ColumnSums {
  alignas(64) float terms[kSlice];
  alignas(64) double sums[kSlice];
};

template <int kPerWord>
FASTQAT_INLINE void clear(ColumnSums& column, int64_t n) {
  const int64_t words = ceil_div(n, kPerWord);
  std::memset(column.terms, 0, static_cast<size_t>(words) * 4);
  if (kPerWord == 2) std::memset(column.terms + kSlice / 2, 0, static_cast<size_t>(words) * 4);
  std::memset(column.sums, 0, static_cast<size_t>(n) * 8);
}

// Adds the terms of a slice to its sums and clears them. Copies lie next to each other and fold in halves, and so does the run of a
// channel as long as it is even.
template <int kPerWord>
FASTQAT_INLINE void flush(const Partition& cut, int64_t n, ColumnSums& column) {
  constexpr int64_t kWords = kSlice / kPerWord;
  alignas(64) float linear[kSlice];
  const int64_t words = ceil_div(n, kPerWord);
  for (int64_t i = 0; i < words; ++i) {
    linear[kPerWord * i] = column.terms[i];
    column.terms[i] = 0;
    if (kPerWord == 1) continue;
    linear[kPerWord * i + 1] = column.terms[kWords + i];
    column.terms[kWords + i] = 0;
  }
  for (int64_t copies = cut.copies; copies > 1; copies /= 2) {
    n /= 2;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) linear[i] += linear[n + i];
  }
  for (int64_t run = cut.inner; run % 2 == 0; run /= 2) {
    n /= 2;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) linear[i] = linear[2 * i] + linear[2 * i + 1];
  }
  for (int64_t i = 0; i < n; ++i) column.sums[i] += linear[i];
}

FASTQAT_INLINE void put_channels(const Partition& cut, int64_t n, double* columns, int64_t partial, const Sums& sums) {
  int64_t run = cut.inner;
  while (run % 2 == 0) run /= 2;
  const int64_t channels = n / cut.copies / cut.inner;
  if (run > 1) {
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t i = 0; i < run; ++i) total += columns[c * run + i];
      columns[c] = total;
    }
  }
  sums.put(partial, columns, channels);
}

template <class T, bool kReciprocal, bool kZeroPoint, class Ranges>
FASTQAT_INLINE void backward_run(const Pointers& p, int64_t n, const Ranges& range, float* scale, float* zero_point) {
  constexpr int kPerWord = Packing<T>::kPerWord;
  constexpr int64_t kWords = kSlice / kPerWord;
  const int64_t words = n / kPerWord;
#pragma GCC ivdep
  for (int64_t i = 0; i < words; ++i) {
    const WordGrad g = word_gradient<T, kReciprocal>(load_word(p.x, i), load_word(p.grad_y, i), i, range);
    store_word(p.grad_x, i, g.x);
    scale[i] += g.low.scale;
    if (kPerWord == 2) scale[kWords + i] += g.high.scale;
    if (kZeroPoint) zero_point[i] += g.low.zero_point;
    if (kZeroPoint && kPerWord == 2) zero_point[kWords + i] += g.high.zero_point;
  }
  if (n % kPerWord == 0) return;
  const WordGrad g = word_gradient<T, kReciprocal>(load_half(p.x, words), load_half(p.grad_y, words), words, range);
  store_half(p.grad_x, words, g.x);
  scale[words] += g.low.scale;
  if (kZeroPoint) zero_point[words] += g.low.zero_point;
}

// A slice of a task: one pair of partials per (block, row task, channel).
template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void backward_slice(const Job& job, const Tile& tile, int64_t block, int64_t column, int64_t n) {
  constexpr int kPerWord = Packing<T>::kPerWord;
  const Partition& cut = job.cut;
  ColumnRanges<kPerWord, kReciprocal, kZeroPoint> ranges;
  ColumnSums scale, zero_point;
  clear<kPerWord>(scale, n);
  if (kZeroPoint) clear<kPerWord>(zero_point, n);
  ranges.fill(job, block, column, n);
  for (int64_t row = tile.row; row < tile.row_end; ++row) {
    const Pointers p = pointers_at<T>(job, block * cut.block_size + row * cut.columns + column);
    backward_run<T, kReciprocal, kZeroPoint>(p, columns_of_row(cut, row, column, n), ranges, scale.terms, zero_point.terms);
    if ((row - tile.row) % kRun != kRun - 1 && row + 1 < tile.row_end) continue;
    flush<kPerWord>(cut, n, scale);
    if (kZeroPoint) flush<kPerWord>(cut, n, zero_point);
  }
  const int64_t partial = (block * cut.row_tasks + tile.row / cut.task_rows) * cut.channels + column / cut.inner;
  put_channels(cut, n, scale.sums, partial, job.scale_sums);
  if (kZeroPoint) put_channels(cut, n, zero_point.sums, partial, job.zero_point_sums);
}

template <class T, bool kReciprocal, bool kZeroPoint>
FASTQAT_INLINE void backward_columns(const Job& job, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tile_of(job.cut, task);
    for (int64_t block = tile.block; block < tile.block_end; ++block)
      for (int64_t column = tile.column; column < tile.column_end; column += job.cut.slice)
        backward_slice<T, kReciprocal, kZeroPoint>(job, tile, block, column, at_most(tile.column_end - column, job.cut.slice));
  }
}

FASTQAT_INLINE void backward(const Job& job, int64_t begin, int64_t end){
#define FASTQAT_BACKWARD(T, R)                                                                                                           \
  (job.cut.by_column ? (job.zero_point ? backward_columns<T, R, true>(job, begin, end) : backward_columns<T, R, false>(job, begin, end)) \
                     : (job.zero_point ? backward_rows<T, R, true>(job, begin, end) : backward_rows<T, R, false>(job, begin, end)))
    FASTQAT_BY_TYPE(FASTQAT_BACKWARD)}

FASTQAT_LEVELS(backward)

}  // namespace

Loops backward_loops() { return FASTQAT_AT_LEVEL(backward); }

}  // namespace fastqat
