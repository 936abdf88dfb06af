// Boxes of a tensor in any layout and dtype, brought into fp32 scratch [plane][line][column][lanes] where channels are neighbours.
#pragma once

#include <algorithm>

#include "grad_norm_layer.h"
#include "storage.h"
#include "vec_math.h"

namespace fastqat {

// Positions along depth, height and width; a box of x may reach beyond its borders, where it reads zero.
struct Box {
  Triple begin, size;
};

// to[position][channel] = from[channel * stride + position], kLanes of each.
using Transpose = void (*)(const float* from, int64_t stride, float* to);
Transpose transpose_kernel();  // of the current instruction-set level

FASTQAT_INLINE void fill_zero(float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = 0.0f;
}

// Part of a line: n positions, `channels` of at most `lanes` channels that exist.
template <class T>
struct LineSource {
  const T* data;
  int64_t channel, step;  // strides
  int64_t channels, lanes;
  Transpose transpose;
};

// Channels side by side in memory.
template <class T>
FASTQAT_INLINE void copy_line(const LineSource<T>& from, int64_t n, float* __restrict out) {
  const T* __restrict data = from.data;
  for (int64_t i = 0; i < n; ++i) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) out[i * kLanes + l] = widen(data[i * from.step + l]);
  }
}

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
  for (int64_t c = 0; c < from.channels; ++c)
    for (int64_t i = 0; i < n; ++i) out[i * from.lanes + c] = widen(from.data[c * from.channel + i * from.step]);
  for (int64_t c = from.channels; c < from.lanes; ++c)
    for (int64_t i = 0; i < n; ++i) out[i * from.lanes + c] = 0.0f;
}

template <class T>
FASTQAT_INLINE void load_line(const LineSource<T>& from, int64_t n, float* out) {
  const bool whole = from.lanes == kLanes && from.channels == kLanes;
  if (whole && from.channel == 1) return copy_line(from, n, out);
  if (whole && from.step == 1 && n >= kLanes) return transpose_line(from, n, out);
  gather_line(from, n, out);
}

// `data` is the tensor's first position, of the first of `channels` channels.
template <class T>
FASTQAT_INLINE void load_box(const LayerTensor& tensor, const T* data, int64_t channel, int64_t channels, int64_t lanes, const Box& box,
                             Transpose transpose, float* out) {
  const int64_t width = box.size[2];
  const int64_t first = std::min(std::max(-box.begin[2], int64_t{0}), width);
  const int64_t last = std::max(std::min(tensor.size[2] - box.begin[2], width), first);
  for (int64_t p = box.begin[0]; p < box.begin[0] + box.size[0]; ++p)
    for (int64_t q = box.begin[1]; q < box.begin[1] + box.size[1]; ++q, out += width * lanes) {
      if (p < 0 || p >= tensor.size[0] || q < 0 || q >= tensor.size[1]) {
        fill_zero(out, width * lanes);
        continue;
      }
      const T* const line = data + p * tensor.stride[0] + q * tensor.stride[1] + (box.begin[2] + first) * tensor.stride[2];
      fill_zero(out, first * lanes);
      load_line(LineSource<T>{line, channel, tensor.stride[2], channels, lanes, transpose}, last - first, out + first * lanes);
      fill_zero(out + last * lanes, (width - last) * lanes);
    }
}

}  // namespace fastqat
