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

constexpr int64_t kMostColumns = 256;  // channels of one task, where they are neighbours
constexpr int64_t kRun = 64;           // positions that are summed before others' turn

struct Job {
  FeatureMap student, teacher;
  int64_t samples, channels, positions;
  bool columns;
  int64_t task_channels, tasks;   // per sample
  double *means, *teacher_means;  // [N, C]
  float *row, *slope;             // [N], [N, C]
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
FASTQAT_INLINE void add_channels(const Job& job, const FeatureMap& map, int64_t n, int64_t c, int64_t count, float* scratch,
                                 double* means) {
  with_type(map.type, [&](auto type) FASTQAT_INLINE_LAMBDA {
    const auto* const x = map.at<decltype(type)>(n, c, 0);
    if (job.columns)
      sum_columns<W>(x, map.position, job.positions, count, scratch, means);
    else
      means[0] = sum_row<W>(x, job.positions, scratch);
  });
  for (int64_t i = 0; i < count; ++i) means[i] /= static_cast<double>(job.positions);
}

template <int W>
FASTQAT_INLINE void take_means(const Job& job, int64_t begin, int64_t end) {
  const Buffer scratch(kBlock);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / job.tasks, c = task % job.tasks * job.task_channels, count = std::min(job.task_channels, job.channels - c);
    add_channels<W>(job, job.student, n, c, count, scratch.data(), job.means + n * job.channels + c);
    add_channels<W>(job, job.teacher, n, c, count, scratch.data(), job.teacher_means + n * job.channels + c);
  }
}

// What stands in `values` becomes exp(value - top); returns the top.
FASTQAT_INLINE double exponents(const double* __restrict values, int64_t count, double* __restrict exps) {
  double top = values[0];
  for (int64_t i = 1; i < count; ++i) top = values[i] > top ? values[i] : top;
  FASTQAT_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) exps[i] = exp_nonpositive(values[i] - top);
  return top;
}

// space: three times [channels].
FASTQAT_INLINE void compare_means(const Job& job, int64_t n, double* space) {
  const int64_t count = job.channels;
  const double* __restrict x = job.means + n * count;
  const double* __restrict t = job.teacher_means + n * count;
  double* __restrict e = space, * __restrict teacher_e = space + count, * __restrict terms = space + 2 * count;
  const double top = exponents(x, count, e), teacher_top = exponents(t, count, teacher_e);
  const double total = sum_of(count, [&](int64_t c) { return e[c]; }),
               teacher_total = sum_of(count, [&](int64_t c) { return teacher_e[c]; });
  const double shift = std::log(total / teacher_total);
  FASTQAT_INDEPENDENT
  for (int64_t c = 0; c < count; ++c) {
    const double p = e[c] / total, q = teacher_e[c] / teacher_total, u = (x[c] - top) - (t[c] - teacher_top) - shift;
    e[c] = p;
    teacher_e[c] = u;
    terms[c] = p == 0 ? q : p * u - p + q;
  }
  const double row = sum_of(count, [&](int64_t c) { return terms[c]; });
  job.row[n] = static_cast<float>(row < 0 ? 0 : row);
  for (int64_t c = 0; c < count; ++c)
    job.slope[n * count + c] = e[c] == 0 ? 0 : static_cast<float>(e[c] * (teacher_e[c] - row) / static_cast<double>(job.positions));
}

FASTQAT_INLINE void compare_samples(const Job& job, int64_t begin, int64_t end) {
  std::vector<double> space(static_cast<size_t>(3 * job.channels));
  for (int64_t n = begin; n < end; ++n) compare_means(job, n, space.data());
}

FASTQAT_LEVELS(compare_samples)

FASTQAT_WIDE_LEVELS(take_means)

// student, teacher [N, C, L]; row [N], slope [N, C].
void feature_kl_channel_cpu(Tensor student, Tensor teacher, Tensor row, Tensor slope, bool channels_inner) {
  Job job{};
  job.student = as_map(student);
  job.teacher = as_map(teacher);
  job.samples = student.size(0);
  job.channels = student.size(1);
  job.positions = student.size(2);
  job.columns = channels_inner;
  job.task_channels = channels_inner ? std::min(job.channels, kMostColumns) : 1;
  job.tasks = ceil_div(job.channels, job.task_channels);
  std::vector<double> means(static_cast<size_t>(2 * job.samples * job.channels));
  job.means = means.data();
  job.teacher_means = job.means + job.samples * job.channels;
  job.row = data<float>(row);
  job.slope = data<float>(slope);
  const auto take = FASTQAT_AT_LEVEL(take_means), compare = FASTQAT_AT_LEVEL(compare_samples);
  const int64_t grain = ceil_div(kChunk, job.task_channels * job.positions);
  torch::stable::parallel_for(0, job.samples * job.tasks, grain, [&](int64_t begin, int64_t end) { take(job, begin, end); });
  const int64_t samples = ceil_div(kChunk / 8, job.channels);
  torch::stable::parallel_for(0, job.samples, samples, [&](int64_t begin, int64_t end) { compare(job, begin, end); });
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("feature_kl_channel", TORCH_BOX(&fastqat::feature_kl_channel_cpu)); }
