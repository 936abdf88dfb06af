// What the two Gram forms share: the job, tiles of Gram matrices, and the parts beside the sum over pairs of positions.
//
//   |sum_t g_t u_t^T|^2 = sum over pairs (t, t') of (g_t . g_t') (u_t . u_t'),   g_t [O] of grad_y, u_t [taps * C] what the kernel sees
//
// Pairs are worked on in tiles of kSide x kSide positions, row of tiles by row of tiles, up to the diagonal. One task is a segment of these
// rows of one unit, a sample and group. Every row has a partial sum of its own, in fp64, so that segments and threads change no bit.
#pragma once

#include "buffer.h"
#include "grad_norm_positions.h"
#include "lane_loops.h"

namespace fastqat {

constexpr int64_t kSide = kTileColumns;  // positions of a tile
constexpr int64_t kDepth = 128;          // channels multiplied at a time, about what fits the first-level cache

// An element of the weight's gradient that the mask clears: output channel of the group, tap * C + channel.
struct Entry {
  int32_t output, column;
};

struct GramJob {
  Layer layer;
  PositionMap grad_map;
  std::vector<PositionMap> x_maps;  // [taps], of the plain form
  const struct ShiftPlan* plan;     // of the shifted form
  std::vector<Entry> entries;       // by group, then by column
  std::vector<size_t> first_entry;  // [groups + 1]; empty without a mask
  std::vector<int64_t> cuts;        // [segments + 1], in rows of tiles
  TileKernel kernel;
  Transpose transpose;
  LaneLoops loops;
  bool bias;
  double* partials;  // [units][blocks + 1]; the last is that of bias and mask

  int64_t blocks() const { return ceil_div(grad_map.size(), kSide); }
  int64_t strips() const { return blocks() * kTileVectors; }  // in whole tiles
  int64_t segments() const { return static_cast<int64_t>(cuts.size()) - 1; }
  double* partial(int64_t unit) const { return partials + unit * (blocks() + 1); }
};

struct Segment {
  int64_t unit, sample, group, first, last;
};

inline Segment segment_of(const GramJob& job, int64_t task) {
  const int64_t unit = task / job.segments(), part = task % job.segments();
  return {unit, unit / job.layer.groups, unit % job.layer.groups, job.cuts[part], job.cuts[part + 1]};
}

inline int64_t side_of(int64_t positions, int64_t block) { return std::min(positions - block * kSide, kSide); }

// c[rows][kSide]: the products of one block of positions with another, each packed in strips of [depth][kLanes]. On the diagonal, what
// lies right of a row's own vector of kLanes is not set.
inline void gram_tile(TileKernel kernel, int64_t depth, const float* a, int64_t rows, const float* b, bool diagonal, float* c) {
  const int64_t strip = depth * kLanes;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t count = std::min(depth - k, kDepth);
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t tile_rows = std::min<int64_t>(rows - row, kTileRows);
      const float* const columns = b + k * kLanes;
      GemmTile tile{};
      tile.rows = static_cast<int>(tile_rows);
      tile.vectors = diagonal ? static_cast<int>(ceil_div(row + tile_rows, kLanes)) : kTileVectors;
      tile.a = a + row / kLanes * strip + k * kLanes + row % kLanes;
      tile.a_row = 1;
      for (int v = 0; v < kTileVectors; ++v) tile.b[v] = columns + v * strip;
      tile.planes = tile.lines = 1;
      tile.width = count;
      tile.a_step = tile.b_step = kLanes;
      tile.c = c + row * kSide;
      tile.c_row = kSide;
      tile.accumulate = k > 0;
      kernel(tile);
    }
  }
}

// The positions of one column of u, in strips.
struct StripRow {
  const float* data;
  int64_t strip;  // floats from a strip to the next
};

// sum over o of (sum_t g_t)^2
inline double bias_norm(const GramJob& job, const float* grad) {
  double norm = 0;
  for (int64_t o = 0; o < job.layer.outputs; ++o) {
    const double sum = job.loops.sum(grad + o * kLanes, job.layer.outputs * kLanes, job.grad_map.strips());
    norm += sum * sum;
  }
  return norm;
}

// sum of G^2 over the entries that the mask clears, kLanes at a time. column_row(column, place) gives the positions of one column of u;
// what it gave for the last kLanes places must still be there.
template <class ColumnRow>
double cleared_norm(const GramJob& job, int64_t group, const float* grad, const ColumnRow& column_row) {
  const Entry *entry = job.entries.data() + job.first_entry[group], *const end = job.entries.data() + job.first_entry[group + 1];
  double norm = 0;
  while (entry < end) {
    const float *g[kLanes], *u[kLanes];
    const int count = static_cast<int>(std::min<int64_t>(end - entry, kLanes));
    int64_t strip = 0;
    for (int i = 0; i < count; ++i, ++entry) {
      g[i] = grad + entry->output * kLanes;
      if (i > 0 && entry->column == entry[-1].column) {
        u[i] = u[i - 1];
        continue;
      }
      const StripRow row = column_row(entry->column, i);
      u[i] = row.data;
      strip = row.strip;
    }
    norm += job.loops.squared_dots(g, job.layer.outputs * kLanes, u, strip, job.grad_map.strips(), count, job.transpose);
  }
  return norm;
}

// What is added to the sum over pairs: of the bias, and minus what the mask clears.
template <class ColumnRow>
double extras(const GramJob& job, int64_t group, const float* grad, const ColumnRow& column_row) {
  const double norm = job.bias ? bias_norm(job, grad) : 0;
  return job.first_entry.empty() ? norm : norm - cleared_norm(job, group, grad, column_row);
}

// Packs the strips of one block of positions; `stride` floats from a strip to the next.
inline void pack_block(const GramJob& job, const Segment& task, const LayerTensor& tensor, int64_t channels, const PositionMap& map,
                       int64_t block, int64_t stride, float* packed) {
  pack_strips({tensor, task.sample, task.group * channels, channels, &map, stride, job.transpose, packed}, block * kTileVectors,
              std::min((block + 1) * kTileVectors, map.strips()));
}

inline void pack_grad(const GramJob& job, const Segment& task, int64_t block, float* packed) {
  pack_block(job, task, job.layer.grad, job.layer.outputs, job.grad_map, block, job.layer.outputs * kLanes, packed);
}

}  // namespace fastqat
