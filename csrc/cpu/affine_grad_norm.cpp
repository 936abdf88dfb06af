// Squared norms of each sample's gradients of weight and bias, for layers that normalise or only scale, on the CPU: x and grad_y are read
// from memory once, and what is needed of them again comes from the cache. The loops are those of affine_loops.h.
//
//   weight gradient of channel c: sum over t of grad_y x_hat,   bias gradient: sum over t of grad_y
//
// Where mean and variance are not given, deviations are taken from a value near the mean, and what that is off is known from their own
// sum, so that a mean that is large beside the deviation costs no digits.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "affine_job.h"

namespace fastqat {
namespace {

// Of channels from `first` on, totals of grad_y, and of the product that is the weight's gradient but for `scale`.
SqNorm squares_of(const Job& job, const Scratch& scratch, int64_t first, int64_t channels) {
  const double *const grad = scratch.totals.data(), *const product = grad + scratch.width, *const scale = job.scale.data() + first;
  return {sum_of(channels, [=](int64_t c) { return square(product[c] * scale[c]); }),
          sum_of(channels, [=](int64_t c) { return square(grad[c]); })};
}

SqNorm given_rows(const Job& job, const Sample& sample, int64_t first, int64_t rows, Scratch& scratch) {
  job.loops.row_products(sample.x_rows(first, rows), sample.grad_rows(first, rows), job.positions, job.mean.data() + first, job.limit,
                         scratch.totals.data(), scratch.width);
  return squares_of(job, scratch, first, rows);
}

constexpr int64_t kNear = 8;  // most rows that are standardized before their products are taken, from the nearest cache

// How each of at most kNear rows of n becomes x_hat.
void standardize(const Job& job, const RowBlock& x, int64_t n, Standard* standard) {
  const double inverse_count = 1 / static_cast<double>(n);
  float shift[kNear] = {};
  double sums[2 * kNear];
  const double* const squares = sums + kNear;
  if (job.kind != Kind::rms) job.loops.widened(x.first, x.step, x.rows, shift);
  job.loops.row_moments(x, n, shift, sums, kNear);
  for (int64_t r = 0; r < x.rows; ++r) {
    if (job.kind == Kind::rms) {
      standard[r] = {0, job.narrow_inverse_deviation(squares[r] * inverse_count), 0};
      continue;
    }
    Moments moments = moments_of(inverse_count, shift[r], sums[r], squares[r]);
    if (moments.too_far()) {
      shift[r] = static_cast<float>(moments.mean);
      job.loops.row_moments(job.rows_of(x, r, 1), n, shift + r, sums + r, kNear);
      moments = moments_of(inverse_count, shift[r], sums[r], squares[r]);
    }
    const float scale = job.narrow_inverse_deviation(moments.variance);
    standard[r] = {shift[r], scale, static_cast<float>(shift[r] - moments.mean) * scale};
  }
}

constexpr int64_t kNearElements = 4096;  // of x, that stay in the first-level cache
constexpr int64_t kNearPositions = 128;  // longer rows cost more to read again than two more sums per channel

bool is_near(const Job& job) { return job.x_step == job.positions && job.positions <= kNearPositions; }

int64_t near_groups(const Job& job) { return std::clamp<int64_t>(kNearElements / (job.group_channels() * job.positions), 1, kNear); }

// Rows of x that follow each other without gaps: a group is one row of moments, and its channels are read again while they are near.
SqNorm near_group_rows(const Job& job, const Sample& sample, int64_t first, int64_t rows, Scratch& scratch) {
  const int64_t width = job.group_channels(), groups = near_groups(job);
  float* const shift = scratch.shift.data();
  const double *const grad = scratch.totals.data(), *const product = grad + scratch.width;
  SqNorm out;
  for (int64_t row = first; row < first + rows; row += groups * width) {
    const int64_t count = std::min(groups * width, first + rows - row);
    Standard standard[kNear];
    standardize(job, {sample.x_rows(row, 1).first, width * job.x_step, count / width}, width * job.positions, standard);
    for (int64_t g = 0; g * width < count; ++g) std::fill_n(shift + g * width, width, standard[g].shift);
    job.loops.row_products(sample.x_rows(row, count), sample.grad_rows(row, count), job.positions, shift, job.limit, scratch.totals.data(),
                           scratch.width);
    for (int64_t g = 0; g * width < count; ++g) {
      const double scale = standard[g].scale, offset = standard[g].offset;
      const double *const grads = grad + g * width, *const products = product + g * width;
      out.weight += sum_of(width, [=](int64_t c) { return square(products[c] * scale + grads[c] * offset); });
    }
    out.bias += sum_of(count, [=](int64_t r) { return square(grad[r]); });
  }
  return out;
}

// The first value of each group is the shift of its channels; where that is far off, the mean is.
SqNorm group_rows(const Job& job, const Sample& sample, int64_t first, int64_t rows, Scratch& scratch) {
  const int64_t width = job.group_channels();
  if (is_near(job)) return near_group_rows(job, sample, first, rows, scratch);
  const double positions = static_cast<double>(job.positions);
  float* const shift = scratch.shift.data();
  double* const sums = scratch.totals.data();
  job.loops.widened(sample.x_rows(first, rows).first, width * job.x_step, rows / width, shift);
  for (int64_t r = rows - width; r >= 0; r -= width) std::fill_n(shift + r, width, shift[r / width]);
  job.loops.row_group(sample.x_rows(first, rows), sample.grad_rows(first, rows), job.positions, shift, sums, scratch.width);
  SqNorm out;
  for (int64_t r = 0; r < rows; r += width) {
    const GroupSums group(scratch, r, width);
    Moments moments = group.moments(positions);
    if (moments.too_far()) {
      std::fill_n(shift + r, width, static_cast<float>(moments.mean));
      job.loops.row_group(sample.x_rows(first + r, width), sample.grad_rows(first + r, width), job.positions, shift + r, sums + r,
                          scratch.width);
      moments = group.moments(positions);
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

SqNorm given_columns(const Job& job, const Sample& sample, Scratch& scratch) {
  over_rows<2>(job, scratch, [&](int64_t row, int64_t rows, float* parts) {
    job.loops.column_products(sample.x_rows(row, rows), sample.grad_rows(row, rows), job.channels, job.mean.data(), job.limit, parts);
  });
  return squares_of(job, scratch, 0, job.channels);
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
  const auto group_at = [&](int64_t c) { return GroupSums(scratch, c, width); };
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

SqNorm position_columns(const Job& job, const Sample& sample, Scratch& scratch) {
  over_rows<2>(job, scratch, [&](int64_t first, int64_t rows, float* parts) {
    for (int64_t row = first; row < first + rows; row += kNear) {
      const int64_t count = first + rows - row < kNear ? first + rows - row : kNear;
      Standard standard[kNear];
      standardize(job, sample.x_rows(row, count), job.channels, standard);
      job.loops.standard_products(sample.x_rows(row, count), sample.grad_rows(row, count), job.channels, standard, parts);
    }
  });
  return squares_of(job, scratch, 0, job.channels);
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
