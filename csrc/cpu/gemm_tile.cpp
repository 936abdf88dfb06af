// One kernel per number of rows and vectors, so that the sums of a tile stay in registers: 8 x 3 of AVX-512's 32, 4 x 2 of AVX2's 16.
#include "gemm_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../fake_quant.h"

#if FASTQAT_X86_LEVELS
#include <immintrin.h>
#endif

namespace fastqat {
namespace {

#define FASTQAT_UNROLLED _Pragma("GCC unroll 8")

FASTQAT_INLINE int64_t line_offset(const GemmTile& t, int64_t line, int64_t plane_stride, int64_t line_stride) {
  if (t.planes == 1) return line * line_stride;
  return line / t.lines * plane_stride + line % t.lines * line_stride;
}

// Where the tile does not stay in registers: c is written first.
void add_squares(const GemmTile& t) {
  for (int i = 0; i < t.vectors * kLanes; i += kLanes) {
    float lanes[kLanes] = {};
    for (int r = 0; r < t.rows; ++r)
      for (int l = 0; l < kLanes; ++l) lanes[l] += t.c[r * t.c_row + i + l] * t.c[r * t.c_row + i + l];
    std::copy_n(lanes, kLanes, t.sums + i);
  }
}

// Four floats of any CPU. Left to itself, GCC shuffles a plain loop over the tile more than it multiplies.
using Four = float __attribute__((vector_size(16)));

FASTQAT_INLINE Four load_four(const float* p) {
  Four f;
  std::memcpy(&f, p, sizeof f);
  return f;
}

FASTQAT_INLINE Four multiply_add(float a, Four b, Four c) {
#ifdef FP_FAST_FMAF
  for (int l = 0; l < 4; ++l) c[l] = __builtin_fmaf(a, b[l], c[l]);
  return c;
#else
  return a * b + c;
#endif
}

// At most four rows of half a vector of kLanes columns, two registers wide.
template <int R>
FASTQAT_INLINE void eighth_baseline(const GemmTile& t, int row, int v, int half) {
  Four sums[R][2];
  float* const c = t.c + row * t.c_row + v * kLanes + half * 8;
  FASTQAT_UNROLLED
  for (int r = 0; r < R; ++r) {
    FASTQAT_UNROLLED
    for (int h = 0; h < 2; ++h) sums[r][h] = t.accumulate ? load_four(c + r * t.c_row + h * 4) : Four{};
  }
  for (int64_t line = 0; line < t.planes * t.lines; ++line) {
    const float* a = t.a + line_offset(t, line, t.a_plane, t.a_line) + row * t.a_row;
    const float* b = t.b[v] + line_offset(t, line, t.b_plane, t.b_line) + half * 8;
    for (int64_t i = t.width; i > 0; --i, a += t.a_step, b += t.b_step) {
      const Four low = load_four(b), high = load_four(b + 4);
      FASTQAT_UNROLLED
      for (int r = 0; r < R; ++r) {
        sums[r][0] = multiply_add(a[r * t.a_row], low, sums[r][0]);
        sums[r][1] = multiply_add(a[r * t.a_row], high, sums[r][1]);
      }
    }
  }
  FASTQAT_UNROLLED
  for (int r = 0; r < R; ++r) {
    FASTQAT_UNROLLED
    for (int h = 0; h < 2; ++h) std::memcpy(c + r * t.c_row + h * 4, &sums[r][h], sizeof(Four));
  }
}

template <int R>
void quarter_baseline(const GemmTile& t, int row, int v) {
  for (int half = 0; half < 2; ++half) eighth_baseline<R>(t, row, v, half);
}

#if FASTQAT_X86_LEVELS
template <int R, int V>
__attribute__((target("avx512f"))) void tile_avx512(const GemmTile& t) {
  __m512 sums[R][V];
  FASTQAT_UNROLLED
  for (int r = 0; r < R; ++r) {
    FASTQAT_UNROLLED
    for (int v = 0; v < V; ++v) sums[r][v] = t.accumulate ? _mm512_loadu_ps(t.c + r * t.c_row + v * kLanes) : _mm512_setzero_ps();
  }
  const int64_t a_row = t.a_row, a_step = t.a_step, b_step = t.b_step;
  for (int64_t line = 0; line < t.planes * t.lines; ++line) {
    const float* a = t.a + line_offset(t, line, t.a_plane, t.a_line);
    int64_t offset = line_offset(t, line, t.b_plane, t.b_line);
    for (int64_t i = t.width; i > 0; --i, a += a_step, offset += b_step) {
      __m512 b[V];
      FASTQAT_UNROLLED
      for (int v = 0; v < V; ++v) b[v] = _mm512_loadu_ps(t.b[v] + offset);
      FASTQAT_UNROLLED
      for (int r = 0; r < R; ++r) {
        const __m512 factor = _mm512_set1_ps(a[r * a_row]);
        FASTQAT_UNROLLED
        for (int v = 0; v < V; ++v) sums[r][v] = _mm512_fmadd_ps(factor, b[v], sums[r][v]);
      }
    }
  }
  if (t.squares) {
    FASTQAT_UNROLLED
    for (int v = 0; v < V; ++v) {
      __m512 total = _mm512_mul_ps(sums[0][v], sums[0][v]);
      FASTQAT_UNROLLED
      for (int r = 1; r < R; ++r) total = _mm512_fmadd_ps(sums[r][v], sums[r][v], total);
      _mm512_storeu_ps(t.sums + v * kLanes, total);
    }
    return;
  }
  FASTQAT_UNROLLED
  for (int r = 0; r < R; ++r) {
    FASTQAT_UNROLLED
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(t.c + r * t.c_row + v * kLanes, sums[r][v]);
  }
}

// At most four rows of one vector of kLanes columns, two registers wide.
template <int R>
__attribute__((target("avx2,fma"))) void quarter_avx2(const GemmTile& t, int row, int v) {
  __m256 sums[R][2];
  float* const c = t.c + row * t.c_row + v * kLanes;
  FASTQAT_UNROLLED
  for (int r = 0; r < R; ++r) {
    FASTQAT_UNROLLED
    for (int h = 0; h < 2; ++h) sums[r][h] = t.accumulate ? _mm256_loadu_ps(c + r * t.c_row + h * 8) : _mm256_setzero_ps();
  }
  for (int64_t line = 0; line < t.planes * t.lines; ++line) {
    const float* a = t.a + line_offset(t, line, t.a_plane, t.a_line) + row * t.a_row;
    const float* b = t.b[v] + line_offset(t, line, t.b_plane, t.b_line);
    for (int64_t i = t.width; i > 0; --i, a += t.a_step, b += t.b_step) {
      const __m256 low = _mm256_loadu_ps(b), high = _mm256_loadu_ps(b + 8);
      FASTQAT_UNROLLED
      for (int r = 0; r < R; ++r) {
        const __m256 factor = _mm256_broadcast_ss(a + r * t.a_row);
        sums[r][0] = _mm256_fmadd_ps(factor, low, sums[r][0]);
        sums[r][1] = _mm256_fmadd_ps(factor, high, sums[r][1]);
      }
    }
  }
  FASTQAT_UNROLLED
  for (int r = 0; r < R; ++r) {
    FASTQAT_UNROLLED
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(c + r * t.c_row + h * 8, sums[r][h]);
  }
}

#endif

// A tile in quarters, for levels without the registers for all of it.
#define FASTQAT_TILE_IN_QUARTERS(level)                     \
  template <int R, int V>                                   \
  void tile_##level(const GemmTile& t) {                    \
    for (int v = 0; v < V; ++v) {                           \
      quarter_##level < R<4 ? R : 4>(t, 0, v);              \
      if constexpr (R > 4) quarter_##level<R - 4>(t, 4, v); \
    }                                                       \
    if (t.squares) add_squares(t);                          \
  }

// Chooses the instance for a tile's rows and vectors.
#define FASTQAT_TILE_TABLE(level)                                                                                                   \
  void run_##level(const GemmTile& t) {                                                                                             \
    static constexpr TileKernel kKernels[kTileRows][kTileVectors] = {                                                               \
        {tile_##level<1, 1>, tile_##level<1, 2>, tile_##level<1, 3>}, {tile_##level<2, 1>, tile_##level<2, 2>, tile_##level<2, 3>}, \
        {tile_##level<3, 1>, tile_##level<3, 2>, tile_##level<3, 3>}, {tile_##level<4, 1>, tile_##level<4, 2>, tile_##level<4, 3>}, \
        {tile_##level<5, 1>, tile_##level<5, 2>, tile_##level<5, 3>}, {tile_##level<6, 1>, tile_##level<6, 2>, tile_##level<6, 3>}, \
        {tile_##level<7, 1>, tile_##level<7, 2>, tile_##level<7, 3>}, {tile_##level<8, 1>, tile_##level<8, 2>, tile_##level<8, 3>}, \
    };                                                                                                                              \
    kKernels[t.rows - 1][t.vectors - 1](t);                                                                                         \
  }

FASTQAT_TILE_IN_QUARTERS(baseline)
FASTQAT_TILE_TABLE(baseline)
#if FASTQAT_X86_LEVELS
FASTQAT_TILE_IN_QUARTERS(avx2)
FASTQAT_TILE_TABLE(avx2)
FASTQAT_TILE_TABLE(avx512)
#endif

}  // namespace

TileKernel tile_kernel() {
#if FASTQAT_X86_LEVELS
  if (cpu_level() == Level::avx512) return run_avx512;
  if (cpu_level() == Level::avx2) return run_avx2;
#endif
  return run_baseline;
}

}  // namespace fastqat
