// A block of threads multiplies two operands, one tile of the product in registers: depth is cut into chunks, which are unfolded into
// shared memory on the way. The lines of an operand are what its tile has side by side: columns (depth: positions), or positions
// (depth: columns). All sums are in fp32, in the order of depth.
#pragma once

#include "grad_norm_operand.h"

namespace fastqat::grad_norm {

// kGroups tiles of kRows × kColumns side by side, one for each group of channels; a thread has kThreadRows × kThreadColumns of one.
// Slices share a tile: each takes every kSlices-th step of depth.
template <int kGroups_, int kRows_, int kColumns_, int kThreadRows_, int kThreadColumns_, int kChunk_, int kSlices_>
struct Tile {
  static constexpr int kGroups = kGroups_, kRows = kRows_, kColumns = kColumns_, kThreadRows = kThreadRows_;
  static constexpr int kThreadColumns = kThreadColumns_, kChunk = kChunk_, kSlices = kSlices_;
  static constexpr int kAcross = kColumns / kThreadColumns, kDown = kRows / kThreadRows;  // threads of a tile
  static constexpr int kThreads = kSlices * kGroups * kDown * kAcross;
  static constexpr int kResident = kThreads >= 128 ? 4 : 6;  // blocks of a processor, for the compiler's choice of registers
};

// What a thread works on.
template <class Tile>
struct Share {
  int column = static_cast<int>(threadIdx.x) % Tile::kAcross;
  int row = static_cast<int>(threadIdx.x) / Tile::kAcross % Tile::kDown;
  int group = static_cast<int>(threadIdx.x) / (Tile::kAcross * Tile::kDown) % Tile::kGroups;
  int slice = static_cast<int>(threadIdx.x) / (Tile::kAcross * Tile::kDown * Tile::kGroups);
};

// The line of the tile that is the i-th of kMine lines of thread `thread`, of `threads`: in fours, so that shared memory is read four
// values at a time and the threads of a warp read neighbouring fours.
template <int kMine>
__device__ __forceinline__ int line_of(int thread, int threads, int i) {
  return kMine % 4 == 0 ? (i / 4 * threads + thread) * 4 + i % 4 : thread * kMine + i;
}

// Groups, lines of each, depth of a chunk.
template <int kGroups_, int kLines_, int kChunk_>
struct Panel {
  static constexpr int kGroups = kGroups_, kLines = kLines_, kChunk = kChunk_, kAll = kGroups * kLines;
  alignas(16) float values[kChunk][kAll + 4];  // as many more keep the columns of a warp apart
  Place lines[kAll], depth[2][kChunk];

  // Lines one after the other, or the same line of all groups: those are neighbours where a group has few channels.
  __device__ __forceinline__ static int line(int i) { return kGroups >= 32 ? i % kGroups * kLines + i / kGroups : i; }
};

template <class Tile>
struct Panels {
  Panel<Tile::kGroups, Tile::kRows, Tile::kChunk> rows;
  Panel<Tile::kGroups, Tile::kColumns, Tile::kChunk> columns;
};

// One chunk, W neighbours along the lines or along the depth at a time: up to four loads are issued before the first is used.
template <class T, int W, bool kAlongLines, int kThreads, class Panel>
__device__ __forceinline__ void fetch(Panel& panel, const Place* depth, const Operand& o, const T* sample) {
  constexpr int kLineSteps = kAlongLines ? Panel::kAll / W : Panel::kAll, kDepthSteps = kAlongLines ? Panel::kChunk : Panel::kChunk / W;
  constexpr int kItems = kLineSteps * kDepthSteps / kThreads;
  constexpr int kAtOnce = kItems % 4 == 0 ? 4 : kItems % 2 == 0 ? 2 : 1;
  static_assert(kItems * kThreads == kLineSteps * kDepthSteps, "every thread loads as much");
#pragma unroll 1
  for (int first = 0; first < kItems; first += kAtOnce) {
    Pack<T, W> packs[kAtOnce];
    int lines[kAtOnce], depths[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int item = (first + i) * kThreads + static_cast<int>(threadIdx.x);
      lines[i] = kAlongLines ? Panel::line(item % kLineSteps * W) : item / kDepthSteps;
      depths[i] = kAlongLines ? item / kLineSteps : item % kDepthSteps * W;
      packs[i] = load_at<T, W>(sample, o, panel.lines[lines[i]], depth[depths[i]]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < W; ++j) panel.values[depths[i] + (kAlongLines ? 0 : j)][lines[i] + (kAlongLines ? j : 0)] = widen(packs[i].at[j]);
    }
  }
}

template <class T, bool kLinesAreColumns, int kThreads, class Panel>
__device__ __forceinline__ void fetch_chunk(Panel& panel, int turn, const Operand& o, const T* sample) {
  constexpr int V = kVector<T>, kAlongLines = Panel::kGroups < 32 && Panel::kLines % V == 0 ? V : 1;
  const Place* const depth = panel.depth[turn];
  switch (o.access) {
    case Access::channel_vectors:
      return fetch<T, kLinesAreColumns ? kAlongLines : V, kLinesAreColumns, kThreads>(panel, depth, o, sample);
    case Access::position_vectors:
      return fetch<T, kLinesAreColumns ? V : kAlongLines, !kLinesAreColumns, kThreads>(panel, depth, o, sample);
    case Access::channels:
      return fetch<T, 1, kLinesAreColumns, kThreads>(panel, depth, o, sample);
    case Access::positions:
      return fetch<T, 1, !kLinesAreColumns, kThreads>(panel, depth, o, sample);
  }
}

// Four neighbouring values of shared memory.
__device__ __forceinline__ void read_four(const float* from, float* to) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// A thread's lines of one step of depth.
template <int kMine>
__device__ __forceinline__ void read_lines(const float* tile, int thread, int threads, float (&values)[kMine]) {
#pragma unroll
  for (int i = 0; i < kMine; i += kMine % 4 == 0 ? 4 : 1) {
    const float* const from = tile + line_of<kMine>(thread, threads, i);
    if (kMine % 4 == 0)
      read_four(from, values + i);
    else
      values[i] = *from;
  }
}

template <class Tile>
using Sums = float[Tile::kThreadRows][Tile::kThreadColumns];

template <class Tile>
__device__ __forceinline__ void multiply(const Panels<Tile>& panels, const Share<Tile>& share, int depth, Sums<Tile>& sums) {
  constexpr int kSteps = 4;
  static_assert(Tile::kChunk % (kSteps * Tile::kSlices) == 0, "slices take as many steps each");
  for (int first = 0; first < depth; first += kSteps * Tile::kSlices) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int k = first + step * Tile::kSlices + share.slice;
      float rows[Tile::kThreadRows], columns[Tile::kThreadColumns];
      read_lines(panels.rows.values[k] + share.group * Tile::kRows, share.row, Tile::kDown, rows);
      read_lines(panels.columns.values[k] + share.group * Tile::kColumns, share.column, Tile::kAcross, columns);
#pragma unroll
      for (int i = 0; i < Tile::kThreadRows; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kThreadColumns; ++j) sums[i][j] = __fmaf_rn(rows[i], columns[j], sums[i][j]);
      }
    }
  }
}

// sums += the product over depth [begin, end). The caller has set panels' lines; place(k, row, column) sets the places of depth k, and
// after(depth) is called while `depth` steps of both panels are in shared memory.
template <bool kLinesAreColumns, class T, class Tile, class SetPlace, class After>
__device__ __forceinline__ void add_product(Panels<Tile>& panels, const Operand& rows, const T* row_sample, const Operand& columns,
                                            const T* column_sample, int64_t begin, int64_t end, const SetPlace& place, const After& after,
                                            Sums<Tile>& sums) {
  constexpr int kChunk = Tile::kChunk, kThreads = Tile::kThreads;
  const Share<Tile> share;
  const auto set_places = [&](int64_t first, int turn) {
    const int k = static_cast<int>(threadIdx.x);
    if (k >= kChunk) return;
    Place& row = panels.rows.depth[turn][k];
    Place& column = panels.columns.depth[turn][k];
    row = column = nowhere();
    if (first + k < end) place(first + k, row, column);
  };
  set_places(begin, 0);
  __syncthreads();
  int turn = 0;
#pragma unroll 1
  for (int64_t first = begin; first < end; first += kChunk, turn ^= 1) {
    fetch_chunk<T, kLinesAreColumns, kThreads>(panels.rows, turn, rows, row_sample);
    fetch_chunk<T, kLinesAreColumns, kThreads>(panels.columns, turn, columns, column_sample);
    __syncthreads();
    set_places(first + kChunk, turn ^ 1);
    const int depth = end - first < kChunk ? static_cast<int>(end - first) : kChunk;
    multiply(panels, share, depth, sums);
    after(depth);
    __syncthreads();
  }
}

}  // namespace fastqat::grad_norm
