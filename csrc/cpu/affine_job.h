// What the gradient norms of affine layers work on: a job, one of its samples, the space for a task, and the sums of groups of channels.
#pragma once

#include <cmath>
#include <vector>

#include "affine_loops.h"

namespace fastqat {

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
  RowBlock rows_of(const RowBlock& block, int64_t row, int64_t rows) const {
    return {static_cast<const char*>(block.first) + row * block.step * item_bytes, block.step, rows};
  }
  double inverse_variance(double variance) const { return 1 / ((variance < 0 ? 0 : variance) + eps); }
  double inverse_deviation(double variance) const { return std::sqrt(inverse_variance(variance)); }
  // In fp32, which is a third of the time of one that is needed for every row.
  float narrow_inverse_deviation(double variance) const { return 1 / std::sqrt(static_cast<float>((variance < 0 ? 0 : variance) + eps)); }
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

// The sum of term(i), four at a time so that additions overlap.
template <class Term>
double sum_of(int64_t count, const Term& term) {
  double sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int l = 0; l < 4; ++l) sums[l] += term(i + l);
  for (; i < count; ++i) sums[0] += term(i);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

inline double square(double x) { return x * x; }

struct SqNorm {
  double weight = 0, bias = 0;
};

// Mean and variance from the sums of d = x - shift, over parts with one shift or with one each.
struct Moments {
  double mean = 0, variance = 0, about_shift = 0;  // about_shift: mean of d^2
  // The squares of d lose digits of the variance when the shift is some deviations off the mean: then the sums are taken again.
  bool too_far() const { return about_shift > 5 * variance; }
};

inline Moments moments_of(double inverse_count, double shift, double sum, double square) {
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
  std::vector<double> totals;  // [2 or 4][width]
  float* parts;                // [2 or 4][width]
};

// The four sums of each channel of a group.
struct GroupSums {
  const double *grad, *product, *sum, *square_sum;
  const float* shift;
  int64_t channels;
  GroupSums(const Scratch& scratch, int64_t first, int64_t channels)
      : grad(scratch.totals.data() + first),
        product(grad + scratch.width),
        sum(product + scratch.width),
        square_sum(sum + scratch.width),
        shift(scratch.shift.data() + first),
        channels(channels) {}

  Moments moments(double positions) const {
    const double inverse_count = 1 / (positions * static_cast<double>(channels));
    const double mean = sum_of(channels, [&](int64_t c) { return sum[c] + positions * shift[c]; }) * inverse_count;
    const double about_shift = sum_of(channels, [&](int64_t c) { return square_sum[c]; });
    const double lost = sum_of(channels, [&](int64_t c) {
      const double off = mean - shift[c];
      return off * (2 * sum[c] - off * positions);
    });
    return {mean, (about_shift - lost) * inverse_count, about_shift * inverse_count};
  }

  // Of a channel, the sum of grad_y (x - mean) is that of grad_y d without what the shift is off.
  void add_squares(const Job& job, const Moments& moments, SqNorm& out) const {
    const double inverse_variance = job.inverse_variance(moments.variance);
    out.weight += inverse_variance * sum_of(channels, [&](int64_t c) { return square(product[c] - (moments.mean - shift[c]) * grad[c]); });
    out.bias += sum_of(channels, [&](int64_t c) { return square(grad[c]); });
  }
};

}  // namespace fastqat
