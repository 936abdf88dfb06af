// KL divergence of the channel means of feature maps, on the CPU: means of both over all positions in fp64, in one read, and from them, in
// fp64 as well, the divergence of each sample and its gradient at every position of a channel.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "feature_kl_map.h"
#include "lanes.h"
#include "levels.h"
#include "vec_math.h"

namespace fastqat {
namespace {

constexpr int64_t kMostChannels = 256;  // of one task
constexpr int64_t kRun = 64;            // positions that are summed before others' turn

struct Job {
  FeatureMap student, teacher;
  int64_t samples, channels, positions;
  bool columns;
  int64_t task_channels, tasks;  // per sample
  double *sums, *teacher_sums;   // [N, C], over positions
  float *row, *slope;            // [N], [N, C]
};

// kLanes fp64 sums, from vectors of W floats.
template <int W>
struct WideLanes {
  using Floats = typename Vector<W / 2>::Floats;
  typedef double Doubles __attribute__((vector_size(W / 2 * sizeof(double))));
  static constexpr int kParts = 2 * kLanes / W;
  Doubles parts[kParts];

  FASTQAT_INLINE void clear() {
    for (int p = 0; p < kParts; ++p) parts[p] = Doubles{};
  }
  FASTQAT_INLINE void load(const double* x) { std::memcpy(parts, x, sizeof parts); }
  FASTQAT_INLINE void store(double* x) const { std::memcpy(x, parts, sizeof parts); }
  FASTQAT_INLINE void add(const float* x) {
    for (int p = 0; p < kParts; ++p) parts[p] += __builtin_convertvector(reinterpret_cast<const Floats*>(x)[p], Doubles);
  }
  FASTQAT_INLINE double total() const {
    Doubles half[kParts];
    for (int p = 0; p < kParts; ++p) half[p] = parts[p];
    for (int count = kParts / 2; count > 0; count /= 2)
      for (int p = 0; p < count; ++p) half[p] += half[p + count];
    double lanes[W / 2];
    std::memcpy(lanes, half, sizeof lanes);
    for (int count = W / 4; count > 0; count /= 2)
      for (int l = 0; l < count; ++l) lanes[l] += lanes[l + count];
    return lanes[0];
  }
};

template <int W, class T>
FASTQAT_INLINE double sum_row(const T* x, int64_t count, float* scratch) {
  WideLanes<W> sums;
  sums.clear();
  double rest = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min<int64_t>(count - begin, kBlock), whole = n / kLanes * kLanes;
    const float* const values = load_block(x + begin, n, scratch);
    for (int64_t i = 0; i < whole; i += kLanes) sums.add(values + i);
    for (int64_t i = whole; i < n; ++i) rest += values[i];
  }
  return sums.total() + rest;
}

// A channel per lane, kRun positions at a time; those that follow are fetched meanwhile, in the order of memory.
template <int W, class T>
FASTQAT_INLINE void sum_columns(const T* x, int64_t step, int64_t positions, int64_t channels, float* __restrict scratch, double* sums) {
  const int64_t whole = channels / kLanes * kLanes;
  for (int64_t c = 0; c < channels; ++c) sums[c] = 0;
  for (int64_t begin = 0; begin < positions; begin += kRun, x += kRun * step) {
    const int64_t count = std::min(positions - begin, kRun);
    const T* next = x + kRun * step;
    for (int64_t c = 0; c < whole; c += kLanes) {
      WideLanes<W> lanes;
      lanes.load(sums + c);
      for (int64_t l = 0; l < count; ++l, next += kLanes) {
        __builtin_prefetch(next);
        lanes.add(load_block(x + l * step + c, kLanes, scratch));
      }
      lanes.store(sums + c);
    }
    for (int64_t l = 0; l < count; ++l)
      for (int64_t c = whole; c < channels; ++c) sums[c] += widen(x[l * step + c]);
  }
}

template <int W>
FASTQAT_INLINE void add_channels(const Job& job, const FeatureMap& map, int64_t n, int64_t c, int64_t count, float* scratch, double* sums) {
  with_type(map.type, [&](auto type) FASTQAT_INLINE_LAMBDA {
    const auto* const x = map.at<decltype(type)>(n, c, 0);
    if (job.columns) return sum_columns<W>(x, map.position, job.positions, count, scratch, sums);
    for (int64_t i = 0; i < count; ++i) sums[i] = sum_row<W>(x + i * map.channel, job.positions, scratch);
  });
}

template <int W>
FASTQAT_INLINE void take_sums(const Job& job, int64_t begin, int64_t end) {
  const Buffer scratch(kBlock);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / job.tasks, c = task % job.tasks * job.task_channels, count = std::min(job.task_channels, job.channels - c);
    add_channels<W>(job, job.student, n, c, count, scratch.data(), job.sums + n * job.channels + c);
    add_channels<W>(job, job.teacher, n, c, count, scratch.data(), job.teacher_sums + n * job.channels + c);
  }
}

FASTQAT_WIDE_LEVELS(take_sums)

// Of the means of one map, as arrays of `padded` channels: those beyond the last are -inf and have no probability.
struct Means {
  double *below_top, *probabilities;
};

FASTQAT_INLINE double sum_lanes(const double* values, int64_t padded) {
  double lanes[kLanes] = {};
  for (int64_t i = 0; i < padded; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += values[i + l];
  return fold(lanes);
}

// Returns the sum of exp(mean - top), by which the probabilities are still to be divided.
FASTQAT_INLINE double take_means(const Job& job, const double* __restrict sums, int64_t padded, const Means& means) {
  double* __restrict below = means.below_top;
  double* __restrict exps = means.probabilities;
  const double count = static_cast<double>(job.positions);
  double top = -kInfinity;
  for (int64_t c = 0; c < padded; ++c) below[c] = c < job.channels ? sums[c] / count : -kInfinity;
  for (int64_t c = 0; c < job.channels; ++c) top = below[c] > top ? below[c] : top;
  for (int64_t i = 0; i < padded; i += kLanes) {
    FASTQAT_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) {
      below[i + l] -= top;
      exps[i + l] = exp_nonpositive(below[i + l]);
    }
  }
  return sum_lanes(exps, padded);
}

// space: five times as many as there are channels, in whole lanes.
FASTQAT_INLINE void compare_means(const Job& job, int64_t n, int64_t padded, double* space) {
  const Means student{space, space + padded}, teacher{space + 2 * padded, space + 3 * padded};
  const double total = take_means(job, job.sums + n * job.channels, padded, student);
  const double teacher_total = take_means(job, job.teacher_sums + n * job.channels, padded, teacher);
  const double shift = std::log(total / teacher_total);
  double* __restrict terms = space + 4 * padded;
  for (int64_t c = 0; c < padded; ++c) {
    const double p = student.probabilities[c] / total, t = teacher.probabilities[c] / teacher_total;
    const double u = (student.below_top[c] - teacher.below_top[c]) - shift;
    student.probabilities[c] = p;
    student.below_top[c] = u;
    terms[c] = p == 0 ? t : p * u - p + t;
  }
  const double sum = sum_lanes(terms, padded), row = sum < 0 ? 0 : sum, count = static_cast<double>(job.positions);
  job.row[n] = static_cast<float>(row);
  for (int64_t c = 0; c < job.channels; ++c) {
    const double p = student.probabilities[c];
    job.slope[n * job.channels + c] = p == 0 ? 0.0f : static_cast<float>(p * (student.below_top[c] - row) / count);
  }
}

FASTQAT_INLINE void compare_samples(const Job& job, int64_t begin, int64_t end) {
  const int64_t padded = ceil_div(job.channels, kLanes) * kLanes;
  std::vector<double> space(static_cast<size_t>(5 * padded));
  for (int64_t n = begin; n < end; ++n) compare_means(job, n, padded, space.data());
}

FASTQAT_LEVELS(compare_samples)

// student, teacher [N, C, L]; row [N], slope [N, C].
void feature_kl_channel_cpu(Tensor student, Tensor teacher, Tensor row, Tensor slope, bool channels_inner) {
  Job job{};
  job.student = as_map(student);
  job.teacher = as_map(teacher);
  job.samples = student.size(0);
  job.channels = student.size(1);
  job.positions = student.size(2);
  job.columns = channels_inner;
  job.task_channels = std::min(job.channels, kMostChannels);
  job.tasks = ceil_div(job.channels, job.task_channels);
  std::vector<double> sums(static_cast<size_t>(2 * job.samples * job.channels));
  job.sums = sums.data();
  job.teacher_sums = job.sums + job.samples * job.channels;
  job.row = data<float>(row);
  job.slope = data<float>(slope);
  const auto take = FASTQAT_AT_LEVEL(take_sums), compare = FASTQAT_AT_LEVEL(compare_samples);
  const int64_t grain = ceil_div(kChunk, job.task_channels * job.positions);
  torch::stable::parallel_for(0, job.samples * job.tasks, grain, [&](int64_t begin, int64_t end) { take(job, begin, end); });
  const int64_t samples = ceil_div(kChunk / 8, job.channels);
  torch::stable::parallel_for(0, job.samples, samples, [&](int64_t begin, int64_t end) { compare(job, begin, end); });
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("feature_kl_channel", TORCH_BOX(&fastqat::feature_kl_channel_cpu)); }
