#include "transpose.h"

#if FASTQAT_X86_LEVELS
#include <immintrin.h>
#endif

namespace fastqat {
namespace {

void transpose_plain(const float* from, int64_t stride, float* to) {
  for (int64_t p = 0; p < kLanes; ++p)
    for (int64_t c = 0; c < kLanes; ++c) to[p * kLanes + c] = from[c * stride + p];
}

#if FASTQAT_X86_LEVELS
// GCC 12 warns of what the forms without a mask leave undefined; with every element kept it makes the same instructions.
constexpr __mmask16 kAll = 0xffff;

// Rows r, r + 1 .. r + 3 become, in each quarter of a register, the transposed 4 x 4 block of that quarter.
__attribute__((target("avx512f"))) inline void transpose_quarters(const float* from, int64_t stride, __m512* out) {
  const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + stride);
  const __m512 c = _mm512_loadu_ps(from + 2 * stride), d = _mm512_loadu_ps(from + 3 * stride);
  const __m512d ab_low = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(kAll, a, b)),
                ab_high = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(kAll, a, b));
  const __m512d cd_low = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(kAll, c, d)),
                cd_high = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(kAll, c, d));
  out[0] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(kAll & 0xff, ab_low, cd_low));
  out[1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(kAll & 0xff, ab_low, cd_low));
  out[2] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(kAll & 0xff, ab_high, cd_high));
  out[3] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(kAll & 0xff, ab_high, cd_high));
}

__attribute__((target("avx512f"))) void transpose_avx512(const float* from, int64_t stride, float* to) {
  __m512 rows[4][4];  // [rows of four][position in its quarter]
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) transpose_quarters(from + 4 * r * stride, stride, rows[r]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    // Quarter q of rows[r][i] is position 4 q + i of channels 4 r .. 4 r + 3.
    const __m512 even_01 = _mm512_maskz_shuffle_f32x4(kAll, rows[0][i], rows[1][i], 0x88),
                 odd_01 = _mm512_maskz_shuffle_f32x4(kAll, rows[0][i], rows[1][i], 0xdd);
    const __m512 even_23 = _mm512_maskz_shuffle_f32x4(kAll, rows[2][i], rows[3][i], 0x88),
                 odd_23 = _mm512_maskz_shuffle_f32x4(kAll, rows[2][i], rows[3][i], 0xdd);
    _mm512_storeu_ps(to + (0 + i) * kLanes, _mm512_maskz_shuffle_f32x4(kAll, even_01, even_23, 0x88));
    _mm512_storeu_ps(to + (4 + i) * kLanes, _mm512_maskz_shuffle_f32x4(kAll, odd_01, odd_23, 0x88));
    _mm512_storeu_ps(to + (8 + i) * kLanes, _mm512_maskz_shuffle_f32x4(kAll, even_01, even_23, 0xdd));
    _mm512_storeu_ps(to + (12 + i) * kLanes, _mm512_maskz_shuffle_f32x4(kAll, odd_01, odd_23, 0xdd));
  }
}

// Half of the channels at half of the positions.
__attribute__((target("avx2"))) void transpose_eight(const float* from, int64_t stride, float* to) {
  __m256 rows[2][4];
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) {
    const float* const four = from + 4 * r * stride;
    const __m256 a = _mm256_loadu_ps(four), b = _mm256_loadu_ps(four + stride);
    const __m256 c = _mm256_loadu_ps(four + 2 * stride), d = _mm256_loadu_ps(four + 3 * stride);
    const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    rows[r][0] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
    rows[r][1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
    rows[r][2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    rows[r][3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * kLanes, _mm256_permute2f128_ps(rows[0][i], rows[1][i], 0x20));
    _mm256_storeu_ps(to + (4 + i) * kLanes, _mm256_permute2f128_ps(rows[0][i], rows[1][i], 0x31));
  }
}

void transpose_avx2(const float* from, int64_t stride, float* to) {
  for (int64_t p = 0; p < kLanes; p += 8)
    for (int64_t c = 0; c < kLanes; c += 8) transpose_eight(from + c * stride + p, stride, to + p * kLanes + c);
}
#endif

}  // namespace

Transpose transpose_kernel() {
#if FASTQAT_X86_LEVELS
  if (cpu_level() == Level::avx512) return transpose_avx512;
  if (cpu_level() == Level::avx2) return transpose_avx2;
#endif
  return transpose_plain;
}

}  // namespace fastqat
