// Positions of one sample as packed strips, [strip][channel][kLanes] with the positions of a strip side by side: what gemm_tile.h
// multiplies.
#pragma once

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

// Where the elements of one channel lie: offset [positions] from the channel's first element, and the same as runs by strip of `width`.
struct PositionMap {
  std::vector<int64_t> offset;
  std::vector<Run> runs;
  std::vector<size_t> first;  // [strips + 1]: the runs of each strip
  int64_t step, width;

  int64_t size() const { return static_cast<int64_t>(offset.size()); }
  int64_t strips() const { return ceil_div(size(), width); }
};

inline PositionMap make_map(std::vector<int64_t> offset, int64_t step, int64_t width = kLanes) {
  PositionMap map{std::move(offset), {}, {}, step, width};
  for (int64_t p = 0; p < map.size(); ++p) {
    const int64_t from = map.offset[p], lane = p % width;
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

// `channels` channels of one sample, from `channel` on, and where to pack them.
struct StripPacking {
  LayerTensor tensor;
  int64_t sample, channel, channels;
  const PositionMap* map;
  int64_t stride;  // floats from a strip to the next one
  Transpose transpose;
  float* packed;  // strips of [channels][kLanes], zero before: padding, and what lies behind the last position, stays so
};

// Packs the strips [begin, end).
void pack_strips(const StripPacking& packing, int64_t begin, int64_t end);

// At most kLanes floats, in pieces of fixed size: a loop of unknown length would copy one by one.
inline void copy_run(const float* from, int length, float* to) {
  if (length == kLanes) {
    std::memcpy(to, from, kLanes * sizeof(float));
    return;
  }
  if (length & 8) std::memcpy(to, from, 32), to += 8, from += 8;
  if (length & 4) std::memcpy(to, from, 16), to += 4, from += 4;
  if (length & 2) std::memcpy(to, from, 8), to += 2, from += 2;
  if (length & 1) *to = *from;
}

}  // namespace fastqat
