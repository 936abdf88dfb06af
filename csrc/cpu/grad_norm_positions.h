// Positions of one sample as packed strips, [strip][channel][kLanes] with the positions of a strip side by side: what gemm_tile.h multiplies.
#pragma once

#include <type_traits>
#include <vector>

#include "gemm_tile.h"
#include "grad_norm_layer.h"
#include "grad_norm_pack.h"

namespace fastqat {

constexpr int64_t kPadding = -1;  // the offset of a position outside the tensor: it reads as zero

// Neighbours within a strip whose elements lie one step apart.
struct Run {
  int64_t from;  // of the first one, in elements
  int32_t lane, length;
};

// Where the elements of one channel lie: offset [positions] from the channel's first element, and the same as runs by strip.
struct PositionMap {
  std::vector<int64_t> offset;
  std::vector<Run> runs;
  std::vector<size_t> first;  // [strips + 1]: the runs of each strip
  int64_t step;

  int64_t size() const { return static_cast<int64_t>(offset.size()); }
  int64_t strips() const { return ceil_div(size(), kLanes); }
};

inline PositionMap make_map(std::vector<int64_t> offset, int64_t step) {
  PositionMap map{std::move(offset), {}, {}, step};
  for (int64_t p = 0; p < map.size(); ++p) {
    const int64_t from = map.offset[p], lane = p % kLanes;
    if (lane == 0) map.first.push_back(map.runs.size());
    if (from == kPadding) continue;
    if (lane > 0 && map.offset[p - 1] != kPadding && map.offset[p - 1] + step == from)
      ++map.runs.back().length;
    else
      map.runs.push_back({from, static_cast<int32_t>(lane), 1});
  }
  map.first.push_back(map.runs.size());
  return map;
}

// From a position to the next one: along the fastest dimension that has more than one.
inline int64_t step_of(const Triple& size, const Triple& stride, const Triple& step) {
  const int d = size[2] > 1 ? 2 : size[1] > 1 ? 1 : 0;
  return stride[d] * step[d];
}

// At most kLanes floats, in pieces of fixed size: a loop of unknown length would copy one by one.
FASTQAT_INLINE void copy_run(const float* from, int length, float* to) {
  if (length == kLanes) {
    std::memcpy(to, from, kLanes * sizeof(float));
    return;
  }
  if (length & 8) std::memcpy(to, from, 32), to += 8, from += 8;
  if (length & 4) std::memcpy(to, from, 16), to += 4, from += 4;
  if (length & 2) std::memcpy(to, from, 8), to += 2, from += 2;
  if (length & 1) *to = *from;
}

template <class T>
FASTQAT_INLINE void copy_run(const T* __restrict from, int length, float* __restrict to) {
  if (length == kLanes)
    for (int i = 0; i < kLanes; ++i) to[i] = widen(from[i]);
  else
    for (int i = 0; i < length; ++i) to[i] = widen(from[i]);
}

template <class T>
FASTQAT_INLINE void pack_runs(const T* source, const LayerTensor& tensor, int64_t channels, const PositionMap& map, int64_t strip,
                              float* packed) {
  const Run* const begin = map.runs.data() + map.first[strip];
  const Run* const end = map.runs.data() + map.first[strip + 1];
  for (int64_t c = 0; c < channels; ++c, source += tensor.channel, packed += kLanes)
    for (const Run* run = begin; run < end; ++run) {
      if (map.step == 1)
        copy_run(source + run->from, run->length, packed + run->lane);
      else
        for (int i = 0; i < run->length; ++i) packed[run->lane + i] = widen(source[run->from + i * map.step]);
    }
}

// Channels are neighbours in memory: kLanes positions by kLanes channels are transposed at a time.
template <class T>
FASTQAT_INLINE void pack_transposed(const T* source, int64_t channels, const PositionMap& map, int64_t strip, Transpose transpose,
                                    float* packed) {
  alignas(64) float rows[kLanes * kLanes] = {};
  const int64_t first = strip * kLanes, count = std::min<int64_t>(map.size() - first, kLanes), whole = channels / kLanes * kLanes;
  const bool regular = map.first[strip] < map.first[strip + 1] && map.runs[map.first[strip]].length == kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    if constexpr (std::is_same_v<T, float>) {
      if (regular) {
        transpose(source + map.offset[first] + c, map.step, packed + c * kLanes);
        continue;
      }
    }
    for (int64_t p = 0; p < count; ++p)
      if (map.offset[first + p] != kPadding) copy_run(source + map.offset[first + p] + c, kLanes, rows + p * kLanes);
    transpose(rows, kLanes, packed + c * kLanes);
  }
  for (int64_t p = 0; p < count; ++p)
    for (int64_t c = whole; c < channels && map.offset[first + p] != kPadding; ++c)
      packed[c * kLanes + p] = widen(source[map.offset[first + p] + c]);
}

template <class T>
FASTQAT_INLINE void pack_strip(const LayerTensor& tensor, int64_t sample, int64_t group, int64_t channels, const PositionMap& map,
                               int64_t strip, Transpose transpose, float* packed) {
  const T* const source = tensor.at<T>(sample, group * channels);
  if (tensor.channel == 1 && map.step != 1)
    pack_transposed(source, channels, map, strip, transpose, packed);
  else
    pack_runs(source, tensor, channels, map, strip, packed);
}

// packed [channels][kLanes], zero before: padding, and what lies behind the last position, stays so.
FASTQAT_INLINE void pack_strip(const LayerTensor& tensor, int64_t sample, int64_t group, int64_t channels, const PositionMap& map,
                               int64_t strip, Transpose transpose, float* packed) {
  if (tensor.type == ScalarType::Float) return pack_strip<float>(tensor, sample, group, channels, map, strip, transpose, packed);
  if (tensor.type == ScalarType::BFloat16) return pack_strip<bf16>(tensor, sample, group, channels, map, strip, transpose, packed);
  pack_strip<fp16>(tensor, sample, group, channels, map, strip, transpose, packed);
}

}  // namespace fastqat
