#include "grad_norm_positions.h"

#include <type_traits>

#include "levels.h"

namespace fastqat {
namespace {

using Job = StripPacking;

FASTQAT_INLINE void widen_run(const float* from, int length, float* to) { copy_run(from, length, to); }

template <class T>
FASTQAT_INLINE void widen_run(const T* __restrict from, int length, float* __restrict to) {
  if (length < kLanes) {
    for (int i = 0; i < length; ++i) to[i] = widen(from[i]);
    return;
  }
  FASTQAT_INDEPENDENT
  for (int i = 0; i < kLanes; ++i) to[i] = widen(from[i]);
}

template <class T>
FASTQAT_INLINE void pack_runs(const Job& job, const T* source, int64_t strip, float* packed) {
  const Run* const begin = job.map->runs.data() + job.map->first[strip];
  const Run* const end = job.map->runs.data() + job.map->first[strip + 1];
  const int64_t step = job.map->step;
  for (int64_t c = 0; c < job.channels; ++c, source += job.tensor.channel, packed += kLanes)
    for (const Run* run = begin; run < end; ++run) {
      if (step == 1)
        widen_run(source + run->from, run->length, packed + run->lane);
      else
        for (int i = 0; i < run->length; ++i) packed[run->lane + i] = widen(source[run->from + i * step]);
    }
}

// Channels are neighbours in memory: kLanes positions by kLanes channels are transposed at a time.
template <class T>
FASTQAT_INLINE void pack_transposed(const Job& job, const T* source, int64_t strip, float* packed) {
  const PositionMap& map = *job.map;
  const int64_t first = strip * kLanes, count = std::min<int64_t>(map.size() - first, kLanes), whole = job.channels / kLanes * kLanes;
  const int64_t* const offset = map.offset.data() + first;
  const bool one_run = map.first[strip] < map.first[strip + 1] && map.runs[map.first[strip]].length == kLanes;
  alignas(64) float rows[kLanes * kLanes] = {};
  for (int64_t c = 0; c < whole; c += kLanes) {
    if constexpr (std::is_same_v<T, float>) {
      if (one_run) {
        job.transpose(source + offset[0] + c, map.step, packed + c * kLanes);
        continue;
      }
    }
    for (int64_t p = 0; p < count; ++p)
      if (offset[p] != kPadding) widen_run(source + offset[p] + c, kLanes, rows + p * kLanes);
    job.transpose(rows, kLanes, packed + c * kLanes);
  }
  for (int64_t p = 0; p < count; ++p)
    for (int64_t c = whole; c < job.channels && offset[p] != kPadding; ++c) packed[c * kLanes + p] = widen(source[offset[p] + c]);
}

template <class T>
FASTQAT_INLINE void pack_all(const Job& job, int64_t begin, int64_t end) {
  const T* const source = job.tensor.at<T>(job.sample, job.channel);
  const bool transposed = job.tensor.channel == 1 && job.map->step != 1;
  for (int64_t strip = begin; strip < end; ++strip) {
    if (transposed)
      pack_transposed(job, source, strip, job.packed + strip * job.stride);
    else
      pack_runs(job, source, strip, job.packed + strip * job.stride);
  }
}

FASTQAT_INLINE void pack(const Job& job, int64_t begin, int64_t end) {
  if (job.tensor.type == ScalarType::Float) return pack_all<float>(job, begin, end);
  if (job.tensor.type == ScalarType::BFloat16) return pack_all<bf16>(job, begin, end);
  pack_all<fp16>(job, begin, end);
}

FASTQAT_LEVELS(pack)

}  // namespace

void pack_strips(const StripPacking& packing, int64_t begin, int64_t end) { FASTQAT_AT_LEVEL(pack)(packing, begin, end); }

}  // namespace fastqat
