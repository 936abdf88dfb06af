// How a tensor in storage order, [blocks, outer, channels, inner], is cut into pieces of work for the device. The cut depends on shape
// and dtype only, never on the device, so that sums built from per-piece partials are the same on every run and every GPU.
#pragma once

#include <algorithm>
#include <numeric>

#include "divider.h"

namespace fastqat {

constexpr int kThreads = 256;
constexpr int kWidth = 32;                 // threads side by side in a tile of columns
constexpr int kDepth = kThreads / kWidth;  // threads below each other
constexpr int64_t kPieces = 8192;          // about as many as the largest device needs, eight rounds of 132 processors with eight each
constexpr int64_t kRepeats = 1024;         // partials of one scale along outer, at most

struct View {
  int64_t blocks, outer, channels, inner;
  int64_t scales() const { return blocks * channels; }
  int64_t numel() const { return blocks * outer * channels * inner; }
};

// Rows: `inner` neighbours share a scale. A piece is `span` of them in up to `rows` rows of one channel, worked on by `lanes` threads.
// Pieces are counted as [blocks][outer_chunks][channels][chunks].
struct RowCut {
  int64_t outer, inner, rows, span, pieces;
  Divider outer_chunks, channels, chunks;
  int lanes;
};

inline RowCut cut_rows(const View& v, int vector) {
  const int64_t row_vectors = divide_up(v.inner, vector), all_rows = v.blocks * v.outer * v.channels;
  int64_t lanes = 4, chunks = 1, rows = 1;
  if (row_vectors >= 4 * kThreads || (row_vectors >= kThreads / 2 && all_rows < kPieces)) {
    lanes = kThreads;  // four vectors per thread, more where there would be too many pieces
    chunks = std::min(divide_up(row_vectors, 4 * kThreads), std::max<int64_t>(1, kPieces / all_rows));
  } else {
    while (lanes < 32 && lanes * 8 <= row_vectors) lanes *= 2;
    const int64_t per_thread = std::max<int64_t>(1, row_vectors / lanes);
    const int64_t fill = divide_up(all_rows * lanes, kThreads * kPieces / 8);  // rows a piece may take before there are too few pieces
    rows = std::min(std::max<int64_t>(1, 16 / per_thread), fill);
  }
  rows = std::max<int64_t>(1, std::min(v.outer, std::max(rows, divide_up(v.outer, kRepeats))));
  const int64_t span = divide_up(divide_up(row_vectors, chunks), lanes) * lanes * vector;
  chunks = std::max<int64_t>(1, divide_up(v.inner, span));
  const int64_t outer_chunks = divide_up(v.outer, rows);
  return {v.outer,
          v.inner,
          rows,
          span,
          v.blocks * outer_chunks * v.channels * chunks,
          Divider(std::max<int64_t>(1, outer_chunks)),
          Divider(v.channels),
          Divider(chunks),
          static_cast<int>(lanes)};
}

struct RowPiece {
  int64_t scale, begin, length, rows, stride;  // `rows` runs of `length` elements, the first at `begin`, `stride` apart
};

__device__ __forceinline__ RowPiece row_piece(const RowCut& cut, int64_t piece) {
  int64_t rest = piece, chunk = piece;
  rest = cut.chunks.split(chunk);
  int64_t channel = rest;
  rest = cut.channels.split(channel);
  int64_t o = rest;
  const int64_t block = cut.outer_chunks.split(o);
  o *= cut.rows;
  const int64_t start = chunk * cut.span, left = cut.inner - start, below = cut.outer - o;
  return {block * cut.channels.d + channel, ((block * cut.outer + o) * cut.channels.d + channel) * cut.inner + start,
          left < cut.span ? left : cut.span, below < cut.rows ? below : cut.rows, cut.channels.d * cut.inner};
}

// Columns: `inner` is short, so neighbours have other scales, and a thread keeps to one vector of columns. `merge` rows of
// channels * inner elements are taken as one, so that every vector of every row is aligned and a tile is full; the sums of a
// block's pieces lie as [outer_chunks][merge][channels][inner].
struct ColumnCut {
  int64_t columns, size;   // of a merged row, and of a block; the last merged row of a block may be incomplete
  int64_t rows, all_rows;  // merged rows of a piece and of a block
  Divider tiles, outer_chunks, channels, inner;
  int64_t merge, pieces;
};

// The least number of rows that fills whole vectors, times what fills the tiles of kWidth vectors to nine tenths, if outer has enough.
inline int64_t merged_rows(const View& v, int vector) {
  const int64_t row = v.channels * v.inner, least = vector / std::gcd(row, static_cast<int64_t>(vector));
  const int64_t most = std::max<int64_t>(1, v.outer / (least * kDepth));
  int64_t best = 1;
  double best_use = 0;
  for (int64_t times = 1; times <= std::min<int64_t>(most, kWidth * 8) && best_use < 0.9; ++times) {
    const int64_t vectors = times * least * row / vector;
    const double use = static_cast<double>(vectors) / static_cast<double>(divide_up(vectors, kWidth) * kWidth);
    if (use > best_use) best = times, best_use = use;
  }
  return least * best;
}

inline ColumnCut cut_columns(const View& v, int vector) {
  ColumnCut cut{};
  cut.merge = merged_rows(v, vector);
  cut.columns = cut.merge * v.channels * v.inner;
  cut.size = v.outer * v.channels * v.inner;
  cut.all_rows = divide_up(v.outer, cut.merge);
  const int64_t tiles = divide_up(cut.columns, kWidth * vector), across = tiles * v.blocks;
  const int64_t least = across >= kPieces / 8 ? 32 * kDepth : 8 * kDepth;
  cut.rows = std::max(least, divide_up(cut.all_rows, std::min(kRepeats, std::max<int64_t>(1, kPieces / across))));
  const int64_t outer_chunks = divide_up(cut.all_rows, cut.rows);
  cut.tiles = Divider(tiles);
  cut.outer_chunks = Divider(std::max<int64_t>(1, outer_chunks));
  cut.channels = Divider(v.channels);
  cut.inner = Divider(v.inner);
  cut.pieces = tiles * outer_chunks * v.blocks;
  return cut;
}

struct ColumnPiece {
  int64_t block, column;     // the block, and a thread's first column in it
  int64_t begin, end;        // its first element, and where the block ends
  int64_t row, last;         // its rows: kDepth apart
  int64_t partials, inside;  // where the partials of this tile's columns begin, and how many columns it has
};

__device__ __forceinline__ ColumnPiece column_piece(const ColumnCut& cut, int64_t piece, int thread, int vector) {
  int64_t tile = piece, o = cut.tiles.split(tile);
  const int64_t block = cut.outer_chunks.split(o);
  const int64_t tile_column = tile * kWidth * vector, column = tile_column + thread % kWidth * vector;
  const int64_t row = o * cut.rows + thread / kWidth, below = (o + 1) * cut.rows;
  const int64_t last = column < cut.columns ? (below < cut.all_rows ? below : cut.all_rows) : 0;
  return {block,
          column,
          block * cut.size + row * cut.columns + column,
          (block + 1) * cut.size,
          row,
          last,
          (block * cut.outer_chunks.d + o) * cut.columns + tile_column,
          cut.columns - tile_column};
}

// Short rows go by column when there are enough of them to sum over; below 16 neighbours always.
inline bool by_column(const View& v) { return v.inner < 16 || (v.inner < 128 && v.outer >= kDepth); }

}  // namespace fastqat
