// Gradient of the KL divergence of feature maps on the CPU: value by value, the probabilities are computed again from both maps and from
// what the forward pass keeps of each channel.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "buffer.h"
#include "feature_kl_map.h"
#include "feature_kl_part.h"
#include "levels.h"

namespace fastqat {
namespace {

// Channels side by side are worked on for several positions, so that what is kept of them is prepared once for all of these.
constexpr int64_t kLeastPositions = 64, kMostChannels = kBlock / 2, kCopied = 128;

struct Job {
  FeatureMap student, teacher, grad_x;
  const float *grad_row, *row, *statistics;  // [N, C], [N, C], [4, N, C]
  int64_t samples, channels, positions;
  bool columns;
  int64_t task_channels, task_positions, channel_tasks, position_tasks;
  int64_t task_copies;  // positions that follow each other in memory, taken at a time
};

// Of a channel: probabilities are exp(x - top) * to_p; high, low: half_gap_at_equality.
struct Kept {
  float top, to_p, high, low, row, grad;
};

FASTQAT_INLINE Kept kept_of(const Job& job, int64_t channel) {
  const int64_t count = job.samples * job.channels;
  const float top = job.statistics[channel], teacher_top = job.statistics[channel + count];
  const ExactDifference equal = half_gap_at_equality(top, teacher_top, job.statistics[channel + 3 * count]);
  return {top, 1 / job.statistics[channel + 2 * count], equal.high, equal.low, job.row[channel], job.grad_row[channel]};
}

// grad * p (u - row), 0 where p is, whatever u may be.
FASTQAT_INLINE float gradient(float x, float t, const Kept& of) {
  const float p = exp_nonpositive(x - of.top) * of.to_p, half = half_log_ratio(x, t, {of.high, of.low});
  const float slope = p == 0.0f ? 0.0f : p * fused(2.0f, half, -of.row);
  return of.grad * slope;
}

FASTQAT_INLINE void narrow(float f, bf16& h) { h.bits = f == f ? static_cast<uint16_t>(round_bf16(f) >> 16) : uint16_t{0x7fc0}; }
FASTQAT_INLINE void narrow(float f, fp16& h) { h.bits = static_cast<uint16_t>(narrow_fp16(f)); }
FASTQAT_INLINE void narrow(float f, float& h) { h = f; }

FASTQAT_INLINE const float* load(const FeatureMap& map, int64_t n, int64_t c, int64_t l, int64_t count, float* scratch) {
  if (map.type == ScalarType::Float) return map.at<float>(n, c, l);
  if (map.type == ScalarType::BFloat16) return load_block(map.at<bf16>(n, c, l), count, scratch);
  return load_block(map.at<fp16>(n, c, l), count, scratch);
}

template <class T>
FASTQAT_INLINE void store(const float* __restrict values, int64_t count, T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) narrow(values[i], to[i]);
}

// `count` neighbours from (n, c, l) on; kept(i) is of the i-th.
template <class KeptOf>
FASTQAT_INLINE void write_run(const Job& job, int64_t n, int64_t c, int64_t l, int64_t count, float* scratch, const KeptOf& kept) {
  const bool direct = job.grad_x.type == ScalarType::Float;
  const float* __restrict x = load(job.student, n, c, l, count, scratch);
  const float* __restrict t = load(job.teacher, n, c, l, count, scratch + kBlock);
  float* __restrict out = direct ? job.grad_x.at<float>(n, c, l) : scratch + 2 * kBlock;
  FASTQAT_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) out[i] = gradient(x[i], t[i], kept(i));
  if (direct) return;
  if (job.grad_x.type == ScalarType::BFloat16) return store(out, count, job.grad_x.at<bf16>(n, c, l));
  store(out, count, job.grad_x.at<fp16>(n, c, l));
}

struct Task {
  int64_t sample, channel, channels, position, end;
};

FASTQAT_INLINE Task task_at(const Job& job, int64_t task) {
  const int64_t channel = task % job.channel_tasks * job.task_channels;
  task /= job.channel_tasks;
  const int64_t position = task % job.position_tasks * job.task_positions;
  return {task / job.position_tasks, channel, std::min(job.task_channels, job.channels - channel), position,
          std::min(position + job.task_positions, job.positions)};
}

FASTQAT_INLINE void write_rows(const Job& job, const Task& at, float* scratch) {
  const Kept kept = kept_of(job, at.sample * job.channels + at.channel);
  for (int64_t l = at.position; l < at.end; l += kBlock)
    write_run(job, at.sample, at.channel, l, std::min<int64_t>(at.end - l, kBlock), scratch,
              [&](int64_t) FASTQAT_INLINE_LAMBDA { return kept; });
}

FASTQAT_INLINE void write_columns(const Job& job, const Task& at, float* scratch) {
  float* const fields = scratch + 3 * kBlock;
  float* __restrict top = fields;
  float* __restrict to_p = fields + kMostChannels;
  float* __restrict high = fields + 2 * kMostChannels;
  float* __restrict low = fields + 3 * kMostChannels;
  float* __restrict row = fields + 4 * kMostChannels;
  float* __restrict grad = fields + 5 * kMostChannels;
  const int64_t copies = job.task_copies, width = copies * at.channels;
  for (int64_t c = 0; c < at.channels; ++c) {
    const Kept kept = kept_of(job, at.sample * job.channels + at.channel + c);
    for (int64_t i = c; i < width; i += at.channels)
      top[i] = kept.top, to_p[i] = kept.to_p, high[i] = kept.high, low[i] = kept.low, row[i] = kept.row, grad[i] = kept.grad;
  }
  for (int64_t l = at.position; l < at.end; l += copies)
    write_run(job, at.sample, at.channel, l, std::min(copies, at.end - l) * at.channels, scratch,
              [=](int64_t i) FASTQAT_INLINE_LAMBDA { return Kept{top[i], to_p[i], high[i], low[i], row[i], grad[i]}; });
}

FASTQAT_INLINE void write_gradient(const Job& job, int64_t begin, int64_t end) {
  const Buffer scratch(3 * kBlock + 6 * kMostChannels);
  for (int64_t i = begin; i < end; ++i) {
    const Task task = task_at(job, i);
    if (job.columns)
      write_columns(job, task, scratch.data());
    else
      write_rows(job, task, scratch.data());
  }
}

FASTQAT_LEVELS(write_gradient)

// All maps [N, C, L], and grad_x dense; grad_row, row [N, C]; statistics [4, N, C].
void feature_kl_backward_cpu(Tensor grad_row, Tensor student, Tensor teacher, Tensor row, Tensor statistics, Tensor grad_x,
                             bool channels_inner) {
  Job job{};
  job.student = as_map(student);
  job.teacher = as_map(teacher);
  job.grad_x = as_map(grad_x);
  job.grad_row = data<const float>(grad_row);
  job.row = data<const float>(row);
  job.statistics = data<const float>(statistics);
  job.samples = student.size(0);
  job.channels = student.size(1);
  job.positions = student.size(2);
  job.columns = channels_inner;
  job.task_channels = job.columns ? std::min(job.channels, kMostChannels) : 1;
  job.task_positions = std::max(kLeastPositions, kChunk / job.task_channels);
  job.channel_tasks = ceil_div(job.channels, job.task_channels);
  job.position_tasks = ceil_div(job.positions, job.task_positions);
  const bool dense = job.student.position == job.channels && job.teacher.position == job.channels && job.grad_x.position == job.channels;
  job.task_copies = dense ? std::max<int64_t>(1, kCopied / job.task_channels) : 1;
  const auto loops = FASTQAT_AT_LEVEL(write_gradient);
  const int64_t grain = ceil_div(kChunk, job.task_channels * std::min(job.positions, job.task_positions));
  const int64_t tasks = job.samples * job.channel_tasks * job.position_tasks;
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("feature_kl_backward", TORCH_BOX(&fastqat::feature_kl_backward_cpu)); }
