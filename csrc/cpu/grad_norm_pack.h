// Boxes of a tensor in any layout and dtype, brought into fp32 scratch [plane][line][column][lanes] where channels are neighbours.
#pragma once

#include <algorithm>

#include "grad_norm_layer.h"
#include "storage.h"
#include "transpose.h"
#include "vec_math.h"

namespace fastqat {

constexpr int64_t kFetchedLines = 32;  // of the cache, asked for ahead of those that are read

// Positions along depth, height and width; a box of x may reach beyond its borders, where it reads zero.
struct Box {
  Triple begin, size;
};

FASTQAT_INLINE void fill_zero(float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = 0.0f;
}

template <class T>
FASTQAT_INLINE void widen_run(const T* __restrict from, int64_t step, int64_t n, float* __restrict to) {
  if (step == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i * step]);
}

// Part of a line: n positions, `channels` of at most `lanes` channels that exist.
template <class T>
struct LineSource {
  const T* data;
  int64_t channel, step;  // strides
  int64_t channels, lanes;
  Transpose transpose;
};

FASTQAT_INLINE void transpose_block(const LineSource<float>& from, int64_t i, float* out) {
  from.transpose(from.data + i, from.channel, out + i * kLanes);
}

template <class T>
FASTQAT_INLINE void transpose_block(const LineSource<T>& from, int64_t i, float* out) {
  alignas(64) float rows[kLanes * kLanes];
  for (int c = 0; c < kLanes; ++c) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) rows[c * kLanes + l] = widen(from.data[c * from.channel + i + l]);
  }
  from.transpose(rows, kLanes, out + i * kLanes);
}

// Positions side by side in memory, at least kLanes of them; the last block overlaps the one before.
template <class T>
FASTQAT_INLINE void transpose_line(const LineSource<T>& from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) transpose_block(from, std::min(i, n - kLanes), out);
}

template <class T>
FASTQAT_INLINE void gather_line(const LineSource<T>& from, int64_t n, float* out) {
  if (from.channel == 1 && from.channels == from.lanes) {
    if (from.step == from.lanes) return widen_run(from.data, 1, n * from.lanes, out);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < from.lanes; ++c) out[i * from.lanes + c] = widen(from.data[i * from.step + c]);
    return;
  }
  for (int64_t c = 0; c < from.channels; ++c)
    for (int64_t i = 0; i < n; ++i) out[i * from.lanes + c] = widen(from.data[c * from.channel + i * from.step]);
  for (int64_t c = from.channels; c < from.lanes; ++c)
    for (int64_t i = 0; i < n; ++i) out[i * from.lanes + c] = 0.0f;
}

template <class T>
FASTQAT_INLINE void load_line(const LineSource<T>& from, int64_t n, float* out) {
  const bool whole = from.lanes == kLanes && from.channels == kLanes;
  if (whole && from.step == 1 && n >= kLanes) return transpose_line(from, n, out);
  gather_line(from, n, out);
}

// A box of a tensor: `data` is the tensor's first position, of the first of `channels` channels that exist; `channel` their stride.
template <class T>
struct BoxSource {
  const LayerTensor& tensor;
  const T* data;
  int64_t channel, channels, lanes;
  Transpose transpose;

  const T* at(int64_t p, int64_t q, int64_t w) const { return data + p * tensor.stride[0] + q * tensor.stride[1] + w * tensor.stride[2]; }
  LineSource<T> line(int64_t p, int64_t q, int64_t w) const { return {at(p, q, w), channel, tensor.stride[2], channels, lanes, transpose}; }
};

// From begin to end: the coordinates of a box along dimension i that the tensor has.
struct Range {
  int64_t begin, end;
};
FASTQAT_INLINE Range inside(const Box& box, const LayerTensor& tensor, int i) {
  const int64_t begin = std::min(std::max(box.begin[i], int64_t{0}), tensor.size[i]);
  return {begin, std::max(std::min(box.begin[i] + box.size[i], tensor.size[i]), begin)};
}

// Lines that follow each other in memory and are shorter than a block of the transpose.
template <class T>
FASTQAT_INLINE bool has_short_lines(const BoxSource<T>& from, Range lines, Range columns) {
  const int64_t width = from.tensor.size[2];
  return from.lanes == kLanes && from.channels == kLanes && from.tensor.stride[2] == 1 && from.tensor.stride[1] == width &&
         width < kLanes && columns.end - columns.begin == width && (lines.end - lines.begin) * width >= kLanes;
}

// Such lines of one plane, transposed as if they were one and put where each position belongs; `out` is the place of the first.
template <class T>
FASTQAT_INLINE void load_short_lines(const BoxSource<T>& from, int64_t p, Range lines, int64_t out_line, float* out) {
  const int64_t width = from.tensor.size[2], n = (lines.end - lines.begin) * width;
  alignas(64) float block[kLanes * kLanes];
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t first = std::min(i, n - kLanes);
    transpose_block(from.line(p, lines.begin, first), 0, block);
    float* line = out + first / width * out_line;
    int64_t column = first % width;
    for (int l = 0; l < kLanes; ++l) {
      std::memcpy(line + column * kLanes, block + l * kLanes, kLanes * sizeof(float));
      if (++column < width) continue;
      column = 0;
      line += out_line;
    }
  }
}

template <class T>
FASTQAT_INLINE void load_box(const BoxSource<T>& from, const Box& box, float* out) {
  const Range planes = inside(box, from.tensor, 0), lines = inside(box, from.tensor, 1), columns = inside(box, from.tensor, 2);
  const int64_t out_line = box.size[2] * from.lanes, out_plane = box.size[1] * out_line;
  const bool whole =
      planes.end - planes.begin == box.size[0] && lines.end - lines.begin == box.size[1] && columns.end - columns.begin == box.size[2];
  if (!whole) fill_zero(out, box.size[0] * out_plane);
  for (int64_t p = planes.begin; p < planes.end; ++p) {
    float* const plane = out + (p - box.begin[0]) * out_plane + (columns.begin - box.begin[2]) * from.lanes - box.begin[1] * out_line;
    if (has_short_lines(from, lines, columns)) {
      load_short_lines(from, p, lines, out_line, plane + lines.begin * out_line);
      continue;
    }
    for (int64_t q = lines.begin; q < lines.end; ++q)
      load_line(from.line(p, q, columns.begin), columns.end - columns.begin, plane + q * out_line);
  }
}

// One block of kLanes channels at one position; `channels` are left.
template <class T>
FASTQAT_INLINE void copy_lanes(const T* __restrict from, int64_t channels, float* __restrict out) {
  if (channels >= kLanes) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) out[l] = widen(from[l]);
  } else {
    for (int l = 0; l < kLanes; ++l) out[l] = l < channels ? widen(from[l]) : 0.0f;
  }
}

// Blocks of kLanes of the source's channels, each a box of its own, `stride` apart. Channels side by side are read for all blocks at once.
template <class T>
FASTQAT_INLINE void load_blocks(const BoxSource<T>& from, const Box& box, int64_t stride, float* out) {
  if (from.channel != 1 || from.lanes != kLanes) {
    for (int64_t c = 0; c < from.channels; c += kLanes, out += stride) {
      const int64_t channels = std::min(from.channels - c, int64_t{kLanes});
      load_box(BoxSource<T>{from.tensor, from.data + c * from.channel, from.channel, channels, from.lanes, from.transpose}, box, out);
    }
    return;
  }
  const int64_t ahead = ceil_div(kFetchedLines * kLanes, from.channels) * from.tensor.stride[2];
  for (int64_t p = box.begin[0]; p < box.begin[0] + box.size[0]; ++p)
    for (int64_t q = box.begin[1]; q < box.begin[1] + box.size[1]; ++q)
      for (int64_t w = box.begin[2]; w < box.begin[2] + box.size[2]; ++w, out += kLanes) {
        const T* const source = from.at(p, q, w);
        const bool exists = p >= 0 && p < from.tensor.size[0] && q >= 0 && q < from.tensor.size[1] && w >= 0 && w < from.tensor.size[2];
        float* block = out;
        for (int64_t c = 0; c < from.channels; c += kLanes, block += stride) {
          __builtin_prefetch(source + c + ahead);
          if (exists)
            copy_lanes(source + c, from.channels - c, block);
          else
            fill_zero(block, kLanes);
        }
      }
}

}  // namespace fastqat
