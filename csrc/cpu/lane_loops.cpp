#include "lane_loops.h"

#include "lanes.h"
#include "levels.h"

namespace fastqat {
namespace {

template <int W, int V>
FASTQAT_INLINE double dot_of(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t rows) {
  Lanes<W> sums[2][V];
  for (int s = 0; s < 2; ++s)
    for (int v = 0; v < V; ++v) sums[s][v].clear();
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2, a += 2 * a_row, b += 2 * b_row)
    for (int s = 0; s < 2; ++s)
      for (int v = 0; v < V; ++v) sums[s][v].add_product(a + s * a_row + v * kLanes, b + s * b_row + v * kLanes);
  for (int v = 0; r < rows && v < V; ++v) sums[0][v].add_product(a + v * kLanes, b + v * kLanes);
  double total = 0;
  for (int v = 0; v < V; ++v) total += sums[0][v].total() + sums[1][v].total();
  return total;
}

template <int W>
FASTQAT_INLINE double dot(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t rows, int vectors) {
  if (vectors == 1) return dot_of<W, 1>(a, a_row, b, b_row, rows);
  if (vectors == 2) return dot_of<W, 2>(a, a_row, b, b_row, rows);
  return dot_of<W, 3>(a, a_row, b, b_row, rows);
}

template <int W>
FASTQAT_INLINE double sum(const float* a, int64_t a_row, int64_t rows) {
  Lanes<W> total;
  total.clear();
  for (int64_t r = 0; r < rows; ++r, a += a_row) total.add(a);
  return total.total();
}

// The sums of each pair's lanes come from a transposed matrix of all, kLanes pairs at a time.
template <int W>
FASTQAT_INLINE double squared_dots(const float* const* a, int64_t a_strip, const float* const* b, int64_t b_strip, int64_t strips,
                                   int count, Transpose transpose) {
  alignas(64) float lanes[kLanes * kLanes], pairs[kLanes * kLanes], dots[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    Lanes<W> sum;
    sum.clear();
    for (int64_t s = 0; i < count && s < strips; ++s) sum.add_product(a[i] + s * a_strip, b[i] + s * b_strip);
    sum.store(lanes + i * kLanes);
  }
  transpose(lanes, kLanes, pairs);
  Lanes<W> sums, squares;
  sums.clear();
  for (int l = 0; l < kLanes; ++l) sums.add(pairs + l * kLanes);
  sums.store(dots);
  squares.clear();
  squares.add_square(dots);
  return squares.total();
}

// Of zeros and ones; products of lanes are ones where all factors are.
template <int W>
FASTQAT_INLINE bool all_ones(const float* x, int64_t n) {
  Lanes<W> product;
  int64_t i = 0;
  product.fill(1.0f);
  for (; i + kLanes <= n; i += kLanes) product.multiply(x + i);
  bool ones = product.total() == kLanes;
  for (; i < n; ++i) ones = ones && x[i] == 1.0f;
  return ones;
}

template <int W>
FASTQAT_INLINE void copy_rows(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows, int64_t length) {
  for (; rows > 0; --rows, from += from_row, to += to_row) {
    int64_t i = 0;
    for (; i + W <= length; i += W) std::memcpy(to + i, from + i, W * sizeof(float));
    for (int piece = W / 2; piece > 0; piece /= 2) {
      if (!(length & piece)) continue;
      std::memcpy(to + i, from + i, piece * sizeof(float));
      i += piece;
    }
  }
}

constexpr int kChains = 4;               // sums side by side, since an addition takes as long as several loads
constexpr int64_t kSquares = 16 * 1024;  // added in fp32 before they go into fp64

template <int W, class T>
FASTQAT_INLINE double squares_of(const T* x, int64_t n) {
  double total = 0;
  int64_t i = 0;
  while (n - i >= kLanes) {
    const int64_t end = n - i < kSquares ? n : i + kSquares;
    Lanes<W> sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c].clear();
    for (; i + kChains * kLanes <= end; i += kChains * kLanes)
      for (int c = 0; c < kChains; ++c) sums[c].add_square(x + i + c * kLanes);
    for (; i + kLanes <= end; i += kLanes) sums[0].add_square(x + i);
    for (int c = 1; c < kChains; ++c) sums[0].add(sums[c]);
    total += sums[0].total();
  }
  for (; i < n; ++i) total += static_cast<double>(widen(x[i])) * widen(x[i]);
  return total;
}

template <int W>
FASTQAT_INLINE double squares(const void* x, ScalarType type, int64_t n) {
  if (type == ScalarType::Float) return squares_of<W>(static_cast<const float*>(x), n);
  if (type == ScalarType::BFloat16) return squares_of<W>(static_cast<const bf16*>(x), n);
  return squares_of<W>(static_cast<const fp16*>(x), n);
}

template <int W, int V>
FASTQAT_INLINE void add_cells(const float* grad, const float* ring, const int64_t* seen, int64_t taps, Lanes<W>& total) {
  Lanes<W> sums[V];
  for (int v = 0; v < V; ++v) sums[v].clear();
  for (int64_t k = 0; k < taps; ++k)
    for (int v = 0; v < V; ++v) sums[v].add(ring + seen[k] - (v + 1) * kLanes);
  for (int v = 0; v < V; ++v) total.add_product(sums[v], grad - (v + 1) * kLanes);
}

template <int W>
FASTQAT_INLINE double shifted_dot(const float* grad, const float* ring, const int64_t* seen, int64_t taps, int64_t cells) {
  Lanes<W> total;
  total.clear();
  for (; cells > 2 * kLanes; cells -= 4 * kLanes, grad -= 4 * kLanes, ring -= 4 * kLanes) add_cells<W, 4>(grad, ring, seen, taps, total);
  if (cells > kLanes)
    add_cells<W, 2>(grad, ring, seen, taps, total);
  else if (cells > 0)
    add_cells<W, 1>(grad, ring, seen, taps, total);
  return total.total();
}

#define FASTQAT_LANE_LOOPS(level, W, attribute)                                                                                         \
  attribute double dot_##level(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t rows, int vectors) {               \
    return dot<W>(a, a_row, b, b_row, rows, vectors);                                                                                   \
  }                                                                                                                                     \
  attribute double sum_##level(const float* a, int64_t a_row, int64_t rows) { return sum<W>(a, a_row, rows); }                          \
  attribute double squared_dots_##level(const float* const* a, int64_t a_strip, const float* const* b, int64_t b_strip, int64_t strips, \
                                        int count, Transpose transpose) {                                                               \
    return squared_dots<W>(a, a_strip, b, b_strip, strips, count, transpose);                                                           \
  }                                                                                                                                     \
  attribute bool all_ones_##level(const float* x, int64_t n) { return all_ones<W>(x, n); }                                              \
  attribute void copy_rows_##level(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows, int64_t length) {      \
    copy_rows<W>(from, from_row, to, to_row, rows, length);                                                                             \
  }                                                                                                                                     \
  attribute double squares_##level(const void* x, ScalarType type, int64_t n) { return squares<W>(x, type, n); }                        \
  attribute double shifted_dot_##level(const float* grad, const float* ring, const int64_t* seen, int64_t taps, int64_t cells) {        \
    return shifted_dot<W>(grad, ring, seen, taps, cells);                                                                               \
  }                                                                                                                                     \
  constexpr LaneLoops kLoops_##level{dot_##level,       sum_##level,     squared_dots_##level, all_ones_##level,                        \
                                     copy_rows_##level, squares_##level, shifted_dot_##level};

FASTQAT_LANE_LOOPS(baseline, 4, )
#if FASTQAT_X86_LEVELS
FASTQAT_LANE_LOOPS(avx2, 8, __attribute__((target("avx2,fma"))))
FASTQAT_LANE_LOOPS(avx512, 16, __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

}  // namespace

const LaneLoops& lane_loops() {
#if FASTQAT_X86_LEVELS
  if (cpu_level() == Level::avx512) return kLoops_avx512;
  if (cpu_level() == Level::avx2) return kLoops_avx2;
#endif
  return kLoops_baseline;
}

}  // namespace fastqat
