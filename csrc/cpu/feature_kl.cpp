// KL divergence of feature maps, forward, on the CPU: a softmax over the positions of each channel of student and teacher. Both are read
// once, a tile at a time, into fp32 scratch that stays in the first-level cache (feature_kl_tile.h). A tile is
//
//   part of a channel   positions are neighbours
//   short channels      the same, kLanes channels of at most kShort positions, transposed: a channel per lane
//   columns             channels are neighbours: kLanes of them, at up to kTileSteps positions
//
// How a map is cut depends on its shape only, so that sums are the same for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "feature_kl_map.h"
#include "feature_kl_tile.h"
#include "levels.h"
#include "transpose.h"

namespace fastqat {
namespace {

constexpr int64_t kShort = 128;  // positions

enum class Kind { part, transposed, columns };

struct Job {
  FeatureMap student, teacher;
  Kind kind;
  int64_t samples, channels, positions;
  int64_t groups, group_channels, parts, part_positions;  // tiles per sample, and how much each takes
  Transpose transpose;
  Part* part;  // [samples, channels, parts], where there are several
  float *row, *statistics;
};

// What a task works on: `channels` channels of a sample, `steps` positions of each.
struct Place {
  int64_t sample, channel, channels, position, steps;
};

FASTQAT_INLINE Place place_of(const Job& job, int64_t task) {
  const int64_t group = task % job.groups;
  task /= job.groups;
  const int64_t position = task % job.parts * job.part_positions;
  const int64_t channel = group * job.group_channels;
  return {task / job.parts, channel, std::min(job.channels - channel, job.group_channels), position,
          std::min(job.positions - position, job.part_positions)};
}

template <class T>
FASTQAT_INLINE void load_part(const T* __restrict from, int64_t count, float* __restrict to) {
  FASTQAT_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
  for (int64_t i = count; i % kLanes; ++i) to[i] = to[0];
}

template <class T>
FASTQAT_INLINE void load_columns(const T* from, int64_t step, int64_t steps, int64_t channels, float* __restrict to) {
  if (channels < kLanes) {
    for (int64_t i = 0; i < steps * kLanes; ++i) to[i] = 0;
    for (int64_t s = 0; s < steps; ++s)
      for (int64_t c = 0; c < channels; ++c) to[s * kLanes + c] = widen(from[s * step + c]);
    return;
  }
  for (int64_t s = 0; s < steps; ++s) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) to[s * kLanes + l] = widen(from[s * step + l]);
  }
}

template <class T>
FASTQAT_INLINE void load_short(const T* from, int64_t step, int64_t positions, int64_t channels, Transpose transpose,
                               float* __restrict rows, float* to) {
  const int64_t stride = ceil_div(positions, kLanes) * kLanes;
  for (int64_t c = 0; c < channels; ++c) {
    FASTQAT_INDEPENDENT
    for (int64_t i = 0; i < positions; ++i) rows[c * stride + i] = widen(from[c * step + i]);
  }
  for (int64_t i = 0; i < positions; i += kLanes) transpose(rows + i, stride, to + i * kLanes);
}

// The values of a tile: where they lie, or in `to`; rows: scratch of as many.
FASTQAT_INLINE const float* load(const Job& job, const FeatureMap& map, const Place& at, float* rows, float* to) {
  if (job.kind == Kind::part && map.type == ScalarType::Float && at.steps % kLanes == 0)
    return map.at<float>(at.sample, at.channel, at.position);
  with_type(map.type, [&](auto type) FASTQAT_INLINE_LAMBDA {
    const auto* const from = map.at<decltype(type)>(at.sample, at.channel, at.position);
    if (job.kind == Kind::columns) return load_columns(from, map.position, at.steps, at.channels, to);
    if (job.kind == Kind::transposed) return load_short(from, map.channel, at.steps, at.channels, job.transpose, rows, to);
    load_part(from, at.steps, to);
  });
  return to;
}

// Of columns, each tile fetches an equal part of what all groups read at the positions that follow, in the order of memory.
FASTQAT_INLINE NextTile next_tile(const Job& job, const FeatureMap& map, int64_t task, int64_t steps) {
  const bool columns = job.kind == Kind::columns;
  const int64_t group = columns ? task % job.groups : 0, step = kLanes * map.item_bytes();
  const Place next = place_of(job, columns ? task - group + job.groups : task + 1);
  return {map.address(next.sample, next.channel, next.position) + group * steps * step, step};
}

void finish_row(const Job& job, int64_t row, const Whole& whole) {
  const int64_t rows = job.samples * job.channels;
  job.row[row] = static_cast<float>(whole.part.divergence);
  job.statistics[row] = whole.part.top;
  job.statistics[row + rows] = whole.part.teacher_top;
  job.statistics[row + 2 * rows] = static_cast<float>(whole.part.total);
  job.statistics[row + 3 * rows] = static_cast<float>(whole.shift);
}

template <int W>
FASTQAT_INLINE void compare_tiles(const Job& job, int64_t begin, int64_t end) {
  const Buffer memory(5 * kTile);
  float* const base = memory.data();
  Part parts[kLanes];
  for (int64_t task = begin; task < end; ++task) {
    const Place at = place_of(job, task);
    const bool one = job.kind == Kind::part;
    const Tile tile{load(job, job.student, at, base + 4 * kTile, base),
                    load(job, job.teacher, at, base + 4 * kTile, base + kTile),
                    base + 2 * kTile,
                    base + 3 * kTile,
                    one ? ceil_div(at.steps, kLanes) : at.steps,
                    one ? at.steps : 0,
                    next_tile(job, job.student, task, at.steps),
                    next_tile(job, job.teacher, task, at.steps)};
    compare_tile<W>(tile, parts);
    for (int64_t c = 0; c < at.channels; ++c) {
      const int64_t row = at.sample * job.channels + at.channel + c;
      if (job.parts == 1)
        finish_row(job, row, whole_of(parts[c]));
      else
        job.part[row * job.parts + at.position / job.part_positions] = parts[c];
    }
  }
}

FASTQAT_WIDE_LEVELS(compare_tiles)

// Channels that lie alike in all samples are those of one.
void merge_samples(Job& job) {
  const bool single = job.channels == 1;
  const auto alike = [&](const FeatureMap& map) { return single || map.sample == job.channels * map.channel; };
  if (job.kind == Kind::columns || !alike(job.student) || !alike(job.teacher)) return;
  if (single) job.student.channel = job.student.sample, job.teacher.channel = job.teacher.sample;
  job.channels *= job.samples;
  job.samples = 1;
}

Job make_job(const Tensor& student, const Tensor& teacher, Tensor& row, Tensor& statistics, bool channels_inner) {
  Job job{};
  job.student = as_map(student);
  job.teacher = as_map(teacher);
  job.samples = student.size(0);
  job.channels = student.size(1);
  job.positions = student.size(2);
  job.kind = channels_inner ? Kind::columns : job.positions <= kShort ? Kind::transposed : Kind::part;
  merge_samples(job);
  job.group_channels = job.kind == Kind::part ? 1 : kLanes;
  job.groups = ceil_div(job.channels, job.group_channels);
  job.part_positions = job.kind == Kind::part ? kTile : kTileSteps;
  job.parts = ceil_div(job.positions, job.part_positions);
  job.transpose = transpose_kernel();
  job.row = data<float>(row);
  job.statistics = data<float>(statistics);
  return job;
}

// student, teacher [N, C, L]; row [N, C], statistics [4, N, C].
void feature_kl_cpu(Tensor student, Tensor teacher, Tensor row, Tensor statistics, bool channels_inner) {
  Job job = make_job(student, teacher, row, statistics, channels_inner);
  const int64_t rows = job.samples * job.channels;
  if (rows == 0) return;
  std::vector<Part> parts(static_cast<size_t>(job.parts == 1 ? 0 : rows * job.parts));
  job.part = parts.data();
  const auto loops = FASTQAT_AT_LEVEL(compare_tiles);
  const int64_t grain = ceil_div(kChunk, job.group_channels * std::min(job.positions, job.part_positions));
  torch::stable::parallel_for(0, job.samples * job.parts * job.groups, grain, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
  if (job.parts == 1) return;
  torch::stable::parallel_for(0, rows, ceil_div(kChunk, kTileSteps * job.parts), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) finish_row(job, r, merge(job.part + r * job.parts, job.parts));
  });
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("feature_kl", TORCH_BOX(&fastqat::feature_kl_cpu)); }
