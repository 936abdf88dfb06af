// The direct form: tiles of each sample's gradient, [columns of grad_y] × [columns of x], squared in registers, summed to one partial per
// tile. A mask multiplies before the square; a slope makes partials of Σ_k slope · gradient for every row.
#pragma once

#include "grad_norm_tile.h"
#include "sums.h"

namespace fastqat::grad_norm {

using WideTile = Tile<1, 64, 128, 8, 8, 16, 1>;
using SmallTile = Tile<1, 32, 32, 4, 4, 16, 1>;
using GroupTile = Tile<8, 4, 32, 4, 4, 16, 1>;       // a few channels per group
using DepthwiseTile = Tile<32, 1, 10, 1, 5, 16, 1>;  // one, 3 × 3 taps

struct DirectJob {
  Operand grad_y, x;
  Positions positions;
  int64_t groups;
  const float* mask;   // [outputs, columns of x], or null
  const float* slope;  // the same
  float* partials;     // [samples, tiles of a sample]
  float* inner;        // [samples, outputs, column tiles]; null without a slope
  bool bias;
  bool fours;  // mask and slope are read four at a time
};

// Blocks count as [samples][blocks of groups][row tiles][column tiles].
struct DirectCut {
  int64_t blocks;
  Divider group_blocks, row_tiles, column_tiles;
};

struct DirectTile {
  int64_t sample, group, row, column, column_tile;  // the first group, and what its tile begins with
};

template <class Tile>
__device__ __forceinline__ DirectTile direct_tile(const DirectCut& cut, int64_t block) {
  DirectTile at;
  at.column_tile = block;
  int64_t row = cut.column_tiles.split(at.column_tile), group = cut.row_tiles.split(row);
  at.sample = cut.group_blocks.split(group);
  at.group = group * Tile::kGroups;
  at.row = row * Tile::kRows;
  at.column = at.column_tile * Tile::kColumns;
  return at;
}

template <class Tile, class Panel>
__device__ __forceinline__ void set_lines(Panel& panel, const Operand& o, int64_t groups, int64_t group, int64_t first) {
  for (int i = static_cast<int>(threadIdx.x); i < Panel::kAll; i += Tile::kThreads) {
    const int64_t g = group + i / Panel::kLines;
    panel.lines[i] = g < groups ? column_place(o, g, first + i % Panel::kLines) : nowhere();
  }
}

// kCount neighbours of a row of mask or slope; zeros behind its end.
template <int kCount>
__device__ __forceinline__ void read_weights(const float* row, int64_t column, int64_t columns, bool fours, float (&weights)[kCount]) {
  if (kCount == 4 && fours && column < columns) return read_four(row + column, weights);
#pragma unroll
  for (int j = 0; j < kCount; ++j) weights[j] = column + j < columns ? row[column + j] : 0.0f;
}

// Σ (mask · gradient)² of a thread's part of one row of the tile; adds Σ slope · gradient to inner.
template <class Tile>
__device__ __forceinline__ float square_row(const DirectJob& job, const DirectTile& at, const Share<Tile>& share, int64_t output,
                                            float (&sums)[Tile::kThreadColumns], float& inner) {
  constexpr int kRun = Tile::kThreadColumns % 4 == 0 ? 4 : 1;
  const int64_t columns = job.x.columns;
  float total = 0;
#pragma unroll
  for (int first = 0; first < Tile::kThreadColumns; first += kRun) {
    const int64_t column = at.column + line_of<Tile::kThreadColumns>(share.column, Tile::kAcross, first);
    float weights[kRun];
    if (job.slope != nullptr) {
      read_weights(job.slope + output * columns, column, columns, job.fours, weights);
#pragma unroll
      for (int j = 0; j < kRun; ++j) inner = __fmaf_rn(weights[j], sums[first + j], inner);
    }
    if (job.mask != nullptr) {
      read_weights(job.mask + output * columns, column, columns, job.fours, weights);
#pragma unroll
      for (int j = 0; j < kRun; ++j) sums[first + j] *= weights[j];
    }
#pragma unroll
    for (int j = 0; j < kRun; ++j) total = __fmaf_rn(sums[first + j], sums[first + j], total);
  }
  return total;
}

// The partial of every row's inner product, from those of the threads across.
template <class Tile>
__device__ __forceinline__ void put_inner(const DirectJob& job, const DirectCut& cut, const DirectTile& at,
                                          const float (&parts)[Tile::kGroups * Tile::kRows][Tile::kAcross]) {
  __syncthreads();
  for (int line = static_cast<int>(threadIdx.x); line < Tile::kGroups * Tile::kRows; line += Tile::kThreads) {
    const int64_t group = at.group + line / Tile::kRows, row = at.row + line % Tile::kRows, rows = job.grad_y.columns;
    if (group >= job.groups || row >= rows) continue;
    double total = 0;
    for (const float part : parts[line]) total += part;
    const int64_t output = (at.sample * job.groups + group) * rows + row;
    job.inner[output * cut.column_tiles.d + at.column_tile] = static_cast<float>(total);
  }
}

// Σ (mask · gradient)² of a thread's part of the tile.
template <class Tile>
__device__ __forceinline__ double square_tile(const DirectJob& job, const DirectCut& cut, const DirectTile& at, Sums<Tile>& sums) {
  __shared__ float inner[Tile::kGroups * Tile::kRows][Tile::kAcross];
  const Share<Tile> share;
  double total = 0;
#pragma unroll
  for (int i = 0; i < Tile::kThreadRows; ++i) {
    const int line = line_of<Tile::kThreadRows>(share.row, Tile::kDown, i);
    const int64_t group = at.group + share.group, row = at.row + line, rows = job.grad_y.columns;
    float part = 0;
    if (group < job.groups && row < rows) total += square_row(job, at, share, group * rows + row, sums[i], part);
    inner[share.group * Tile::kRows + line][share.column] = part;
  }
  if (job.slope != nullptr) put_inner<Tile>(job, cut, at, inner);
  return total;
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    direct_kernel(const __grid_constant__ DirectJob job, const __grid_constant__ DirectCut cut, int64_t first) {
  __shared__ Panels<Tile> panels;
  const int64_t block = first + blockIdx.x;
  const DirectTile at = direct_tile<Tile>(cut, block);
  set_lines<Tile>(panels.rows, job.grad_y, job.groups, at.group, at.row);
  set_lines<Tile>(panels.columns, job.x, job.groups, at.group, at.column);
  const T* const grad_y = static_cast<const T*>(job.grad_y.data) + at.sample * job.grad_y.sample;
  const T* const x = static_cast<const T*>(job.x.data) + at.sample * job.x.sample;
  const auto place = [&](int64_t position, Place& row, Place& column) {
    row = position_place(job.grad_y, job.positions, position);
    column = position_place(job.x, job.positions, position);
  };
  const bool bias = job.bias && at.column_tile == 0 && static_cast<int>(threadIdx.x) < Tile::kGroups * Tile::kRows;
  float bias_grad = 0;
  const auto add_bias = [&](int depth) {
    if (!bias) return;
    for (int k = 0; k < depth; ++k) bias_grad += panels.rows.values[k][threadIdx.x];
  };
  Sums<Tile> sums = {};
  add_product<true>(panels, job.grad_y, grad_y, job.x, x, 0, job.positions.count, place, add_bias, sums);
  const double total = sum_lanes<Tile::kThreads>(square_tile<Tile>(job, cut, at, sums) + static_cast<double>(bias_grad) * bias_grad);
  if (threadIdx.x == 0) job.partials[block] = static_cast<float>(total);
}

}  // namespace fastqat::grad_norm
