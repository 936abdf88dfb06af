// grad_y of some outputs and a box of positions, read where it lies or packed.
#pragma once

#include <cstring>

#include "grad_norm_plan.h"

namespace fastqat {

// grad_y as the micro-kernel reads it: element (output, position) of some outputs and a box of positions, by panels of kTileRows outputs.
struct Rows {
  const float* data;
  int64_t count, panel, output;  // outputs; strides
  Triple stride;

  const float* at(int64_t o) const { return data + o / kTileRows * panel; }
};

FASTQAT_INLINE int64_t offset_of(const Triple& at, const Triple& stride) {
  return at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2];
}

// Two panels at one position: a line of the cache. `outputs` are left.
template <class T>
FASTQAT_INLINE void pack_pair(const T* from, int64_t outputs, int64_t panel, float* to) {
  float both[kLanes];
  if (outputs >= kLanes)
    for (int l = 0; l < kLanes; ++l) both[l] = widen(from[l]);
  else
    for (int l = 0; l < kLanes; ++l) both[l] = l < outputs ? widen(from[l]) : 0.0f;
  std::memcpy(to, both, sizeof both / 2);
  if (outputs > kTileRows) std::memcpy(to + panel, both + kTileRows, sizeof both / 2);
}

// A few positions of all panels at a time, so that whole lines of the cache are written, and the next few are on their way.
template <class T>
FASTQAT_INLINE void pack_line(const T* line, int64_t step, int64_t n, int64_t outputs, int64_t panel, float* out) {
  constexpr int64_t kFew = 4;
  for (int64_t begin = 0; begin < n; begin += kFew)
    for (int64_t o = 0; o < outputs; o += kLanes)
      for (int64_t i = begin; i < std::min(begin + kFew, n); ++i) {
        const T* const from = line + i * step + o;
        __builtin_prefetch(from + kFew * step);
        pack_pair(from, outputs - o, panel, out + o / kTileRows * panel + i * kTileRows);
      }
}

// Into scratch, widened: [panel][position][kTileRows] where outputs are neighbours in memory, else [output][position].
template <class T>
FASTQAT_INLINE Rows pack_rows(const LayerTensor& grad, const T* data, int64_t count, const Box& box, float* scratch) {
  const bool outputs_last = grad.channel == 1;
  const auto [planes, lines, width] = box.size;
  const int64_t positions = planes * lines * width, step = outputs_last ? kTileRows : 1;
  float* out = scratch;
  for (int64_t p = 0; p < planes; ++p)
    for (int64_t q = 0; q < lines; ++q, out += width * step) {
      const T* const line = data + offset_of(Triple{box.begin[0] + p, box.begin[1] + q, box.begin[2]}, grad.stride);
      if (outputs_last)
        pack_line(line, grad.stride[2], width, count, kTileRows * positions, out);
      else
        for (int64_t o = 0; o < count; ++o) widen_run(line + o * grad.channel, grad.stride[2], width, out + o * positions);
    }
  return {scratch, count, kTileRows * positions, outputs_last ? 1 : positions, {lines * width * step, width * step, step}};
}

FASTQAT_INLINE Rows load_rows(const Plan& plan, const LayerTensor& grad, const float* data, int64_t count, const Box& box, float* scratch) {
  if (plan.packed) return pack_rows(grad, data, count, box, scratch);
  return {data + offset_of(box.begin, grad.stride), count, kTileRows * grad.channel, grad.channel, grad.stride};
}

template <class T>
FASTQAT_INLINE Rows load_rows(const Plan&, const LayerTensor& grad, const T* data, int64_t count, const Box& box, float* scratch) {
  return pack_rows(grad, data, count, box, scratch);
}

FASTQAT_INLINE float sum_of(const float* values, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += values[i + l];
  float sum = 0;
  for (; i < n; ++i) sum += values[i];
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

// sums[o] += sum over the positions of output o
FASTQAT_INLINE void add_positions(const Rows& rows, const Triple& size, float* __restrict sums) {
  for (int64_t o = 0; o < rows.count; o += kTileRows)
    for (int64_t line = 0; line < size[0] * size[1]; ++line) {
      const float* const data = rows.at(o) + line / size[1] * rows.stride[0] + line % size[1] * rows.stride[1];
      const int64_t count = std::min(rows.count - o, int64_t{kTileRows});
      if (rows.stride[2] == 1)
        for (int64_t r = 0; r < count; ++r) sums[o + r] += sum_of(data + r * rows.output, size[2]);
      else
        for (int64_t i = 0; i < size[2]; ++i)
          for (int64_t r = 0; r < count; ++r) sums[o + r] += data[i * rows.stride[2] + r * rows.output];
    }
}

}  // namespace fastqat
