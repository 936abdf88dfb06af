// The micro-kernel of the matrix products that stay in the cache: c[8 x 48] += sum over positions of a[position][8] * b[position][48].
//
// Operands are read where they lie, by strides, so that neither needs packing:
//   a  element (row, position) at a[row * a_row + position * a_step]: packed [position][8] is (1, 8), rows of positions are (n, 1)
//   b  the kLanes columns of vector v at b[v] + position * b_step: packed [position][48] is b[v] = panel + kLanes * v, b_step = 48
// Positions are a box of `planes`, `lines` and `width`, so that a window slides over an image that stays as it is.
// Sums run in fp32 in the order of the positions. AVX-512 and AVX2 fuse multiply and add and give the same bits; so does the plain kernel
// where fused operations are fast (FP_FAST_FMAF), elsewhere it rounds every product.
#pragma once

#include "../common.h"

namespace fastqat {

constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;
constexpr int kTileColumns = kTileVectors * kLanes;

struct GemmTile {
  int rows, vectors;  // at most kTileRows and kTileVectors
  const float* a;
  int64_t a_row;
  const float* b[kTileVectors];
  int64_t planes, lines, width;
  int64_t a_plane, a_line, a_step;  // floats from a plane, a line, a position to the next
  int64_t b_plane, b_line, b_step;
  float* c;  // row-major, `columns` = vectors * kLanes of each row are written
  int64_t c_row;
  bool accumulate;  // start from c instead of zero
  bool squares;     // write to `sums` [columns] what the squares in each column add up to; c is scratch then
  float* sums;
};

using TileKernel = void (*)(const GemmTile&);

// The kernel of the current instruction-set level.
TileKernel tile_kernel();

// Dense panels a[depth][a_step] and b[depth][b_step]: c[8][columns] (+)= a^T b, columns one of 16, 32 and 48.
inline void tile_gemm(TileKernel kernel, int64_t depth, const float* a, int64_t a_step, const float* b, int64_t b_step, float* c,
                      int64_t c_row, int columns, bool accumulate) {
  const int vectors = columns / kLanes;
  kernel({kTileRows,
          vectors,
          a,
          1,
          {b, b + kLanes, b + 2 * kLanes},
          1,
          1,
          depth,
          0,
          0,
          a_step,
          0,
          0,
          b_step,
          c,
          c_row,
          accumulate,
          false,
          nullptr});
}

}  // namespace fastqat
