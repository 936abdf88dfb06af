// Squared norms of each sample's gradients of weight and bias, for layers that normalise or only scale, on the CPU: x and grad_y are read
// from memory once, and what is needed of them again comes from the cache. The loops are those of affine_loops.h.
//
//   weight gradient of channel c: sum over t of grad_y x_hat,   bias gradient: sum over t of grad_y
//
// Where mean and variance are not given, deviations are taken from a value near the mean, and what that is off is known from their own
// sum, so that a mean that is large beside the deviation costs no digits.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "affine_loops.h"

namespace fastqat {
namespace {

enum class Kind : int64_t { none, negative, given, group, position, rms };

// Rows are channels and a row holds positions, or with `channels_inner` the other way round. A task is a slice of a sample's channels.
struct Job {
  const char *x, *grad_y;
  int64_t item_bytes, x_sample, x_step, grad_sample, grad_step;  // elements between samples, and between rows
  int64_t channels, positions, groups, slices, slice_groups;
  double eps;
  float limit;
  Kind kind;
  bool channels_inner, weight, bias;
  AffineLoops loops;
  std::vector<float> mean;      // [channels], 0 without one
  std::vector<double> scale;    // [channels], 1 / sqrt(var + eps), 1 without one
  std::vector<double> partial;  // [samples, slices]

  int64_t group_channels() const { return channels / groups; }
  double inverse_deviation(double variance) const { return 1 / std::sqrt((variance < 0 ? 0 : variance) + eps); }
};

// x and grad_y of one sample.
struct Sample {
  const Job& job;
  const char *x, *grad_y;
  Sample(const Job& job, int64_t n)
      : job(job), x(job.x + n * job.x_sample * job.item_bytes), grad_y(job.grad_y + n * job.grad_sample * job.item_bytes) {}

  RowBlock x_rows(int64_t row, int64_t rows) const { return {x + row * job.x_step * job.item_bytes, job.x_step, rows}; }
  RowBlock grad_rows(int64_t row, int64_t rows) const { return {grad_y + row * job.grad_step * job.item_bytes, job.grad_step, rows}; }
};

struct SqNorm {
  double weight = 0, bias = 0;
  void add(double weight_gradient, double bias_gradient) {
    weight += weight_gradient * weight_gradient;
    bias += bias_gradient * bias_gradient;
  }
};

// Mean and variance from the sums of d = x - shift, over parts with one shift or with one each.
struct Moments {
  double mean = 0, variance = 0, about_shift = 0;  // about_shift: mean of d^2
  // The squares of d lose digits of the variance when the shift is some deviations off the mean: then the sums are taken again.
  bool too_far() const { return about_shift > 5 * variance; }
};

Moments moments_of(double inverse_count, double shift, double sum, double square) {
  const double offset = sum * inverse_count, about_shift = square * inverse_count;
  return {shift + offset, about_shift - offset * offset, about_shift};
}

// Space for one task.
struct Scratch {
  explicit Scratch(const Job& job)
      : rows(job.channels_inner ? 0 : job.slice_groups * job.group_channels()),
        width(padded(job.channels_inner ? job.channels : rows)),
        shift(width),
        memory(job.channels_inner ? 4 * width + kLanes : 0),
        totals(4 * width) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    parts = memory.data() + (64 - address % 64) % 64 / sizeof(float);
  }
  int64_t rows, width;
  std::vector<float> shift, memory;
  std::vector<double> totals;  // by row [rows][2 or 4], by column [2 or 4][width]
  float* parts;                // [2 or 4][width]
};

SqNorm given_rows(const Job& job, const Sample& sample, int64_t first, int64_t rows, Scratch& scratch) {
  double* const sums = scratch.totals.data();
  job.loops.row_products(sample.x_rows(first, rows), sample.grad_rows(first, rows), job.positions, job.mean.data() + first, job.limit,
                         sums);
  SqNorm out;
  for (int64_t r = 0; r < rows; ++r) out.add(sums[2 * r + 1] * job.scale[first + r], sums[2 * r]);
  return out;
}

// The four sums of each channel of a group.
struct GroupSums {
  const double* sums;
  const float* shift;
  int64_t channel_step, sum_step, channels;
  double at(int64_t c, int k) const { return sums[c * channel_step + k * sum_step]; }

  Moments moments(double positions) const {
    const double inverse_count = 1 / (positions * static_cast<double>(channels));
    Moments out;
    for (int64_t c = 0; c < channels; ++c) out.mean += at(c, 2) + positions * shift[c];
    out.mean *= inverse_count;
    for (int64_t c = 0; c < channels; ++c) {
      const double off = out.mean - shift[c];
      out.about_shift += at(c, 3);
      out.variance += at(c, 3) - off * (2 * at(c, 2) - off * positions);
    }
    out.about_shift *= inverse_count;
    out.variance *= inverse_count;
    return out;
  }

  // Of a channel, the sum of grad_y (x - mean) is that of grad_y d without what the shift is off.
  void add_squares(const Job& job, const Moments& moments, SqNorm& out) const {
    const double scale = job.inverse_deviation(moments.variance);
    for (int64_t c = 0; c < channels; ++c) out.add((at(c, 1) - (moments.mean - shift[c]) * at(c, 0)) * scale, at(c, 0));
  }
};

// The first value of each group is the shift of its channels; where that is far off, the mean is.
SqNorm group_rows(const Job& job, const Sample& sample, int64_t first, int64_t rows, Scratch& scratch) {
  const int64_t width = job.group_channels();
  float* const shift = scratch.shift.data();
  double* const sums = scratch.totals.data();
  const RowBlock x = sample.x_rows(first, rows);
  job.loops.widened(x.first, job.x_step, rows, shift);
  for (int64_t r = 0; r < rows; ++r) shift[r] = shift[r - r % width];
  job.loops.row_group(x, sample.grad_rows(first, rows), job.positions, shift, sums);
  SqNorm out;
  for (int64_t r = 0; r < rows; r += width) {
    const GroupSums group{sums + 4 * r, shift + r, 4, 1, width};
    Moments moments = group.moments(static_cast<double>(job.positions));
    if (moments.too_far()) {
      for (int64_t c = r; c < r + width; ++c) shift[c] = static_cast<float>(moments.mean);
      job.loops.row_group(sample.x_rows(first + r, width), sample.grad_rows(first + r, width), job.positions, shift + r, sums + 4 * r);
      moments = group.moments(static_cast<double>(job.positions));
    }
    group.add_squares(job, moments, out);
  }
  return out;
}

// kSums sums per channel over all rows into the totals, `add(row, rows, parts)` for kRowRun rows at a time.
template <int kSums, class Add>
void over_rows(const Job& job, Scratch& scratch, const Add& add) {
  float* __restrict parts = scratch.parts;
  double* __restrict totals = scratch.totals.data();
  const int64_t size = kSums * scratch.width;
  for (int64_t row = 0; row < job.positions; row += kRowRun) {
    for (int64_t i = 0; i < size; ++i) parts[i] = 0;
    add(row, job.positions - row < kRowRun ? job.positions - row : kRowRun, parts);
    if (row == 0) {
      for (int64_t i = 0; i < size; ++i) totals[i] = parts[i];
    } else {
      for (int64_t i = 0; i < size; ++i) totals[i] += parts[i];
    }
  }
}

// Totals: of grad_y, and of the product that is the weight's gradient but for `scale`.
SqNorm square_columns(const Job& job, const Scratch& scratch) {
  const double *const grad = scratch.totals.data(), *const product = grad + scratch.width;
  SqNorm out;
  for (int64_t c = 0; c < job.channels; ++c) out.add(product[c] * job.scale[c], grad[c]);
  return out;
}

SqNorm given_columns(const Job& job, const Sample& sample, Scratch& scratch) {
  over_rows<2>(job, scratch, [&](int64_t row, int64_t rows, float* parts) {
    job.loops.column_products(sample.x_rows(row, rows), sample.grad_rows(row, rows), job.channels, job.mean.data(), job.limit, parts);
  });
  return square_columns(job, scratch);
}

void add_group_columns(const Job& job, const Sample& sample, Scratch& scratch) {
  over_rows<4>(job, scratch, [&](int64_t row, int64_t rows, float* parts) {
    job.loops.column_group(sample.x_rows(row, rows), sample.grad_rows(row, rows), job.channels, scratch.shift.data(), parts);
  });
}

// The first value of each channel is its shift; where that is far off for a group, the means are taken for all.
SqNorm group_columns(const Job& job, const Sample& sample, Scratch& scratch) {
  const int64_t width = job.group_channels();
  float* const shift = scratch.shift.data();
  const auto group_at = [&](int64_t c) { return GroupSums{scratch.totals.data() + c, shift + c, 1, scratch.width, width}; };
  const double positions = static_cast<double>(job.positions);
  job.loops.widened(sample.x, 1, job.channels, shift);
  add_group_columns(job, sample, scratch);
  bool again = false;
  for (int64_t c = 0; c < job.channels && !again; c += width) again = group_at(c).moments(positions).too_far();
  if (again) {
    for (int64_t c = 0; c < job.channels; c += width) {
      const Moments moments = group_at(c).moments(positions);
      for (int64_t i = c; i < c + width; ++i) shift[i] = static_cast<float>(moments.mean);
    }
    add_group_columns(job, sample, scratch);
  }
  SqNorm out;
  for (int64_t c = 0; c < job.channels; c += width) group_at(c).add_squares(job, group_at(c).moments(positions), out);
  return out;
}

constexpr int64_t kNear = 4;  // most rows that are standardized before their products are taken, from the nearest cache

// How `count` rows from `row` on become x_hat.
void standardize(const Job& job, const Sample& sample, int64_t row, int64_t count, Standard* standard) {
  const RowBlock rows = sample.x_rows(row, count);
  const double inverse_count = 1 / static_cast<double>(job.channels);
  float shift[kNear] = {};
  double sums[2 * kNear];
  if (job.kind == Kind::position) job.loops.widened(rows.first, job.x_step, count, shift);
  job.loops.row_moments(rows, job.channels, shift, sums);
  for (int64_t r = 0; r < count; ++r) {
    if (job.kind == Kind::rms) {
      standard[r] = {0, static_cast<float>(job.inverse_deviation(sums[2 * r + 1] * inverse_count)), 0};
      continue;
    }
    Moments moments = moments_of(inverse_count, shift[r], sums[2 * r], sums[2 * r + 1]);
    if (moments.too_far()) {
      shift[r] = static_cast<float>(moments.mean);
      job.loops.row_moments(sample.x_rows(row + r, 1), job.channels, shift + r, sums + 2 * r);
      moments = moments_of(inverse_count, shift[r], sums[2 * r], sums[2 * r + 1]);
    }
    const double scale = job.inverse_deviation(moments.variance);
    standard[r] = {shift[r], static_cast<float>(scale), static_cast<float>((shift[r] - moments.mean) * scale)};
  }
}

SqNorm position_columns(const Job& job, const Sample& sample, Scratch& scratch) {
  const int64_t near = job.channels <= kShortRow ? kNear : 1;
  over_rows<2>(job, scratch, [&](int64_t first, int64_t rows, float* parts) {
    for (int64_t row = first; row < first + rows; row += near) {
      const int64_t count = first + rows - row < near ? first + rows - row : near;
      Standard standard[kNear];
      if (near > 1) {
        prefetch(sample.grad_rows(row, count), job.channels, job.item_bytes);
        prefetch(sample.x_rows(row + count, count), job.channels, job.item_bytes);
      }
      standardize(job, sample, row, count, standard);
      job.loops.standard_products(sample.x_rows(row, count), sample.grad_rows(row, count), job.channels, standard, parts);
    }
  });
  return square_columns(job, scratch);
}

SqNorm sample_slice(const Job& job, int64_t task, Scratch& scratch) {
  const Sample sample(job, task / job.slices);
  const bool per_group = job.kind == Kind::group;
  if (job.kind == Kind::position || job.kind == Kind::rms) return position_columns(job, sample, scratch);
  if (job.channels_inner) return per_group ? group_columns(job, sample, scratch) : given_columns(job, sample, scratch);
  const int64_t first = task % job.slices * scratch.rows;
  const int64_t rows = first + scratch.rows < job.channels ? scratch.rows : job.channels - first;
  return per_group ? group_rows(job, sample, first, rows, scratch) : given_rows(job, sample, first, rows, scratch);
}

// Slices depend on the shape only, so that the sums do not depend on threads.
void cut(Job& job, int64_t samples) {
  const int64_t size = job.group_channels() * job.positions;
  job.slice_groups = job.channels_inner || size * job.groups <= kChunk ? job.groups : ceil_div(kChunk, size);
  job.slices = ceil_div(job.groups, job.slice_groups);
  job.partial.resize(static_cast<size_t>(samples * job.slices));
}

void take_given(Job& job, const std::optional<Tensor>& mean, const std::optional<Tensor>& var) {
  job.mean.assign(static_cast<size_t>(job.channels), 0.0f);
  job.scale.assign(static_cast<size_t>(job.channels), 1.0);
  for (int64_t c = 0; c < job.channels; ++c) {
    if (mean) job.mean[c] = data<const float>(*mean)[c];
    if (var) job.scale[c] = job.inverse_deviation(data<const float>(*var)[c]);
  }
}

Job describe(const Tensor& x, const Tensor& grad_y, int64_t statistics, int64_t groups, double eps, bool channels_inner) {
  const int64_t row = channels_inner ? 2 : 1;
  Job job{};
  job.x = data<const char>(x);
  job.grad_y = data<const char>(grad_y);
  job.item_bytes = x.scalar_type() == ScalarType::Float ? 4 : 2;
  job.x_sample = x.stride(0);
  job.x_step = x.stride(row);
  job.grad_sample = grad_y.stride(0);
  job.grad_step = grad_y.stride(row);
  job.channels = x.size(1);
  job.positions = x.size(2);
  job.eps = eps;
  job.kind = static_cast<Kind>(statistics);
  job.groups = job.kind == Kind::group ? groups : job.channels;
  job.limit = job.kind == Kind::negative ? 0.0f : std::numeric_limits<float>::infinity();
  job.channels_inner = channels_inner;
  job.loops = affine_loops(x.scalar_type());
  return job;
}

// See library.cpp for the arguments. x is not empty.
void affine_grad_sq_norm_cpu(Tensor x, Tensor grad_y, std::optional<Tensor> mean, std::optional<Tensor> var, Tensor sq_norm,
                             int64_t statistics, int64_t groups, double eps, bool channels_inner, bool weight, bool bias) {
  Job job = describe(x, grad_y, statistics, groups, eps, channels_inner);
  const int64_t samples = x.size(0);
  cut(job, samples);
  take_given(job, mean, var);
  const int64_t grain = ceil_div(kChunk, job.channels * job.positions / job.slices + 1);
  torch::stable::parallel_for(0, samples * job.slices, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch(job);
    for (int64_t task = begin; task < end; ++task) {
      const SqNorm sums = sample_slice(job, task, scratch);
      job.partial[task] = (weight ? sums.weight : 0.0) + (bias ? sums.bias : 0.0);
    }
  });
  for (int64_t n = 0; n < samples; ++n) {
    double total = 0;
    for (int64_t i = 0; i < job.slices; ++i) total += job.partial[n * job.slices + i];
    data<float>(sq_norm)[n] = static_cast<float>(total);
  }
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("affine_grad_sq_norm", TORCH_BOX(&fastqat::affine_grad_sq_norm_cpu)); }
