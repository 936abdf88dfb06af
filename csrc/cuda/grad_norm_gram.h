// The Gram form: Σ_tt' (g_t · g_t') (u_t · u_t' + bias), a tile of positions by positions at a time, on and above the diagonal. Both
// products of a tile stay in registers; the depth of the second is cut into parts, since Σ is linear in it. One position: row norms.
#pragma once

#include "grad_norm_tile.h"
#include "sums.h"

namespace fastqat::grad_norm {

using GramTile = Tile<1, 64, 64, 8, 4, 16, 1>;
using FewTile = Tile<1, 16, 16, 4, 4, 32, 4>;  // few positions

struct GramJob {
  Operand grad_y, x;
  Positions positions;
  float* partials;  // [samples, parts and tiles of a sample]
  bool bias;
};

// Blocks count as [samples][groups][parts of the depth][tiles]; `part` is the depth of a part.
struct GramCut {
  int64_t blocks, side, part;
  Divider groups, parts, tiles;
};

template <class Tile>
__device__ __forceinline__ void set_positions(Panel<1, Tile::kRows, Tile::kChunk>& panel, const Operand& o, const Positions& positions,
                                              int64_t first) {
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows; i += Tile::kThreads)
    panel.lines[i] = position_place(o, positions, first + i);
}

// The products of columns [begin, end) of a group between the positions of tile row i and of tile column j.
template <class T, class Tile>
__device__ __forceinline__ void add_gram(Panels<Tile>& panels, const Operand& o, const Positions& positions, int64_t sample, int64_t group,
                                         int64_t i, int64_t j, int64_t begin, int64_t end, Sums<Tile>& sums) {
  set_positions<Tile>(panels.rows, o, positions, i * Tile::kRows);
  set_positions<Tile>(panels.columns, o, positions, j * Tile::kRows);
  const T* const data = static_cast<const T*>(o.data) + sample * o.sample;
  const auto place = [&](int64_t column, Place& row, Place& other) { row = other = column_place(o, group, column); };
  add_product<false>(panels, o, data, o, data, begin, end, place, [](int) {}, sums);
}

// Σ g · (u + bias) of a thread's part of the tile.
template <class Tile>
__device__ __forceinline__ double sum_products(const Sums<Tile>& g, const Sums<Tile>& u, float bias) {
  float total = 0;
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kThreadColumns; ++j) total = __fmaf_rn(g[i][j], u[i][j] + bias, total);
  }
  return total;
}

// Sums of all slices, in each of them.
template <class Tile>
__device__ __forceinline__ void add_slices(Sums<Tile>& sums) {
  constexpr int kShared = Tile::kThreads / Tile::kSlices;
  __shared__ float parts[Tile::kThreadRows * Tile::kThreadColumns][Tile::kThreads];
  const int mine = static_cast<int>(threadIdx.x);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows * Tile::kThreadColumns; ++i)
    parts[i][mine] = sums[i / Tile::kThreadColumns][i % Tile::kThreadColumns];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows * Tile::kThreadColumns; ++i) {
    float& sum = sums[i / Tile::kThreadColumns][i % Tile::kThreadColumns];
    sum = 0;
    for (int slice = 0; slice < Tile::kSlices; ++slice) sum += parts[i][slice * kShared + mine % kShared];
  }
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    gram_kernel(const __grid_constant__ GramJob job, const __grid_constant__ GramCut cut, int64_t first) {
  __shared__ Panels<Tile> panels;
  const int64_t block = first + blockIdx.x;
  int64_t j = block, part = cut.tiles.split(j), group = cut.parts.split(part), i = 0;
  const int64_t sample = cut.groups.split(group);
  for (int64_t row = cut.side; j >= row; --row, ++i) j -= row;  // j counts the tiles on and above the diagonal, row after row
  j += i;
  Sums<Tile> g = {}, u = {};
  add_gram<T>(panels, job.grad_y, job.positions, sample, group, i, j, 0, job.grad_y.columns, g);
  const int64_t begin = part * cut.part, end = begin + cut.part < job.x.columns ? begin + cut.part : job.x.columns;
  add_gram<T>(panels, job.x, job.positions, sample, group, i, j, begin, end, u);
  if (Tile::kSlices > 1) {
    add_slices<Tile>(g);
    add_slices<Tile>(u);
  }
  const bool counts = threadIdx.x < Tile::kThreads / Tile::kSlices;
  const double total = sum_lanes<Tile::kThreads>(counts ? sum_products<Tile>(g, u, job.bias && part == 0 ? 1.0f : 0.0f) : 0.0);
  if (threadIdx.x == 0) job.partials[block] = static_cast<float>(i == j ? total : 2 * total);
}

constexpr int kRowThreads = 128;

// Σ over the columns of a group, at the first position, by the lanes of a warp.
template <class T, int W>
__device__ __forceinline__ double sum_squares(const Operand& o, const Positions& positions, int64_t sample, int64_t group) {
  const T* const data = static_cast<const T*>(o.data) + sample * o.sample;
  const Place position = position_place(o, positions, 0);
  float total = 0;
  for (int64_t column = threadIdx.x % 32 * W; column < o.columns; column += 32 * W) {
    const Pack<T, W> pack = load_at<T, W>(data, o, position, column_place(o, group, column));
#pragma unroll
    for (int j = 0; j < W; ++j) total = __fmaf_rn(widen(pack.at[j]), widen(pack.at[j]), total);
  }
  return sum_lanes<kRowThreads>(total, 32);
}

template <class T>
__device__ __forceinline__ double row_norm(const Operand& o, const Positions& positions, int64_t sample, int64_t group) {
  return o.access == Access::channel_vectors ? sum_squares<T, kVector<T>>(o, positions, sample, group)
                                             : sum_squares<T, 1>(o, positions, sample, group);
}

// |g|² (|u|² + bias) of one group of one sample per warp, for a single position. Warps without one repeat the first.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    rows_kernel(const __grid_constant__ GramJob job, const __grid_constant__ Divider groups, int64_t rows, int64_t first) {
  const int64_t row = (first + blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  int64_t group = row < rows ? row : 0;
  const int64_t sample = groups.split(group);
  const double g = row_norm<T>(job.grad_y, job.positions, sample, group), u = row_norm<T>(job.x, job.positions, sample, group);
  if (threadIdx.x % 32 == 0 && row < rows) job.partials[row] = static_cast<float>(g * (u + job.bias));
}

}  // namespace fastqat::grad_norm
