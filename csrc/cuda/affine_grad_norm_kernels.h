// Squared norms of each sample's gradients of weight and bias, for layers that normalise or only scale: x and grad_y [N, C, T] with
// neighbouring positions (a row is a channel) or neighbouring channels (a row is a position). Terms are fp32; the sums over vectors of
// them fp64, in an order that the shape decides.
#pragma once

#include "divider.h"
#include "storage.h"
#include "sums.h"

namespace fastqat::affine_grad_norm {

constexpr int kThreads = 256;
constexpr int kWidth = 32;                 // threads along the channels of a row
constexpr int kDepth = kThreads / kWidth;  // rows that a block reads at a time
constexpr int kRun = 16;                   // rows of a thread that are added in fp32

enum class Kind : int64_t { none, negative, given, group, position, rms };

// x_hat is (x - mean) * scale + shift: the shift makes up for the rounding of the mean.
struct Standard {
  float mean, scale, shift;
};

struct Job {
  const void *x, *grad_y;
  int64_t x_sample, x_step, grad_sample, grad_step;  // elements between samples, and between rows
  const float *mean, *var;                           // [C], or null
  Standard* standards;                               // [N, groups] or [N, T], where the statistics are those of the sample
  float* partials;                                   // [N, rows] or [N, blocks of channels]
  int64_t channels, positions, groups;
  Divider group_channels;
  double eps;
  float limit;  // x - mean is at most this
  Kind kind;
  bool weight, bias;
  bool vectors;  // whole vectors are read
};

__device__ __forceinline__ double inverse_deviation(double variance, double eps) { return 1 / sqrt((variance < 0 ? 0 : variance) + eps); }

__device__ __forceinline__ Standard channel_standard(const Job& job, int64_t sample, int64_t channel) {
  if (job.kind == Kind::group) return job.standards[sample * job.groups + job.group_channels.divide(channel)];
  const float mean = job.mean ? job.mean[channel] : 0.0f;
  return {mean, job.var ? static_cast<float>(inverse_deviation(job.var[channel], job.eps)) : 1.0f, 0.0f};
}

__device__ __forceinline__ double squares(const Job& job, double weight_grad, double bias_grad) {
  return (job.weight ? weight_grad * weight_grad : 0.0) + (job.bias ? bias_grad * bias_grad : 0.0);
}

// x - mean, at most the limit; NaN stays.
__device__ __forceinline__ float deviation(float x, float mean, float limit) {
  const float d = x - mean;
  return limit < d ? limit : d;
}

// What shares one mean and deviation: `rows` rows of neighbours, worked on by `lanes` threads. Cells count as [N][cells of a sample].
struct CellCut {
  int64_t cells, first, rows, step;  // first: elements between the beginnings of neighbouring cells
  Divider per_sample, length;
  double share;  // of an element in the mean
  int lanes;
  bool vectors;
};

// Two fp64 sums over a cell, of d = x - mean and of d * d.
template <class T, int W>
__device__ __forceinline__ void add_moments(const T* cell, const CellCut& cut, int lane, float mean, double& sum, double& square) {
  const int64_t count = cut.rows * cut.length.d;
  for (int64_t element = int64_t{lane} * W; element < count; element += int64_t{cut.lanes} * W) {
    int64_t i = element;
    const int64_t row = cut.length.split(i);
    const Pack<T, W> x = load_pack<W>(cell + row * cut.step + i);
    float first = 0, second = 0;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float d = widen(x.at[j]) - mean;
      first += d;
      second += d * d;
    }
    sum += first;
    square += second;
  }
}

struct Moments {
  double sum = 0, square = 0;  // the same in all threads of the cell
};

template <class T>
__device__ __forceinline__ Moments moments_of(const T* cell, const CellCut& cut, int lane, bool inside, float mean) {
  __shared__ Moments cells[kThreads];
  double sum = 0, square = 0;
  if (inside && cut.vectors) add_moments<T, kVector<T>>(cell, cut, lane, mean, sum, square);
  if (inside && !cut.vectors) add_moments<T, 1>(cell, cut, lane, mean, sum, square);
  sum = sum_lanes<kThreads>(sum, cut.lanes);
  square = sum_lanes<kThreads>(square, cut.lanes);
  Moments& mine = cells[threadIdx.x / cut.lanes];
  __syncthreads();
  if (lane == 0) mine = {sum, square};
  __syncthreads();
  return mine;
}

// Means are rounded to fp32 and deviations taken from there, so that a mean that is large beside the deviation costs no digits.
template <class T>
__global__ void __launch_bounds__(kThreads)
    standard_kernel(const __grid_constant__ Job job, const __grid_constant__ CellCut cut, int64_t first) {
  const int lane = static_cast<int>(threadIdx.x) % cut.lanes;
  const int64_t cell = ((first + blockIdx.x) * kThreads + threadIdx.x) / cut.lanes;
  int64_t own = cell;
  const int64_t sample = cut.per_sample.split(own);
  const T* const x = static_cast<const T*>(job.x) + sample * job.x_sample + own * cut.first;
  const bool inside = cell < cut.cells, centred = job.kind != Kind::rms;
  const float mean = centred ? static_cast<float>(moments_of(x, cut, lane, inside, 0.0f).sum * cut.share) : 0.0f;
  const Moments moments = moments_of(x, cut, lane, inside, mean);
  const double rest = centred ? moments.sum * cut.share : 0.0;
  const double scale = inverse_deviation(moments.square * cut.share - rest * rest, job.eps);
  if (lane == 0 && inside) job.standards[cell] = {mean, static_cast<float>(scale), static_cast<float>(-rest * scale)};
}

// A row is a channel, of `lanes` threads. Rows count as [N][C].
struct RowCut {
  int64_t rows;
  Divider channels;
  int lanes;
};

// Σ grad_y and Σ grad_y d over a row, with d = min(x - mean, limit).
template <int W, class T>
__device__ __forceinline__ void add_products(const Job& job, const T* x, const T* grad_y, int lane, int lanes, float mean, double& grad,
                                             double& product) {
  for (int64_t i = int64_t{lane} * W; i < job.positions; i += int64_t{lanes} * W) {
    const Pack<T, W> xs = load_pack<W>(x + i), grads = load_pack<W>(grad_y + i);
    float first = 0, second = 0;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float g = widen(grads.at[j]);
      first += g;
      second += g * deviation(widen(xs.at[j]), mean, job.limit);
    }
    grad += first;
    product += second;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const __grid_constant__ Job job, const __grid_constant__ RowCut cut, int64_t first) {
  const int lane = static_cast<int>(threadIdx.x) % cut.lanes;
  const int64_t row = ((first + blockIdx.x) * kThreads + threadIdx.x) / cut.lanes;
  int64_t channel = row < cut.rows ? row : 0;
  const int64_t sample = cut.channels.split(channel);
  const Standard standard = channel_standard(job, sample, channel);
  const T* const x = static_cast<const T*>(job.x) + sample * job.x_sample + channel * job.x_step;
  const T* const grad_y = static_cast<const T*>(job.grad_y) + sample * job.grad_sample + channel * job.grad_step;
  double grad = 0, product = 0;
  if (job.vectors)
    add_products<kVector<T>>(job, x, grad_y, lane, cut.lanes, standard.mean, grad, product);
  else
    add_products<1>(job, x, grad_y, lane, cut.lanes, standard.mean, grad, product);
  grad = sum_lanes<kThreads>(grad, cut.lanes);
  product = sum_lanes<kThreads>(product, cut.lanes);
  if (lane == 0 && row < cut.rows)
    job.partials[row] = static_cast<float>(squares(job, standard.scale * product + standard.shift * grad, grad));
}

// W channels of a thread, over its rows: kRun rows in fp32, then on to fp64.
template <class T, int W>
struct ColumnSums {
  double grad[W] = {}, product[W] = {};

  // What is left of x is x_hat where each position has its statistics, else x - mean[j], at most limit.
  __device__ __forceinline__ void add(const Job& job, const Standard* positions, const float (&means)[W], const T* x, const T* grad_y) {
    for (int64_t start = threadIdx.x / kWidth; start < job.positions; start += kRun * kDepth) {
      float grads[W] = {}, products[W] = {};
      for (int64_t row = start; row < job.positions && row < start + kRun * kDepth; row += kDepth) {
        const Pack<T, W> xs = load_pack<W>(x + row * job.x_step), gs = load_pack<W>(grad_y + row * job.grad_step);
        const Standard at = positions == nullptr ? Standard{0.0f, 1.0f, 0.0f} : positions[row];
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const float g = widen(gs.at[j]), mean = positions == nullptr ? means[j] : at.mean;
          grads[j] += g;
          products[j] += g * (deviation(widen(xs.at[j]), mean, job.limit) * at.scale + at.shift);
        }
      }
#pragma unroll
      for (int j = 0; j < W; ++j) {
        grad[j] += grads[j];
        product[j] += products[j];
      }
    }
  }
};

// A row is a position; blocks count as [N][blocks of kWidth * W channels].
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    columns_kernel(const __grid_constant__ Job job, const __grid_constant__ Divider blocks, int64_t first) {
  __shared__ double sums[2][kDepth][kWidth * W];
  const int64_t number = first + blockIdx.x;
  int64_t block = number;
  const int64_t sample = blocks.split(block);
  const int lane = static_cast<int>(threadIdx.x) % kWidth * W;
  const int64_t base = block * kWidth * W, channel = base + lane;
  const bool by_position = job.kind == Kind::position || job.kind == Kind::rms;
  ColumnSums<T, W> mine;
  if (channel < job.channels) {
    float means[W];
    for (int j = 0; j < W; ++j) means[j] = by_position ? 0.0f : channel_standard(job, sample, channel + j).mean;
    mine.add(job, by_position ? job.standards + sample * job.positions : nullptr, means,
             static_cast<const T*>(job.x) + sample * job.x_sample + channel,
             static_cast<const T*>(job.grad_y) + sample * job.grad_sample + channel);
  }
#pragma unroll
  for (int j = 0; j < W; ++j) {
    sums[0][threadIdx.x / kWidth][lane + j] = mine.grad[j];
    sums[1][threadIdx.x / kWidth][lane + j] = mine.product[j];
  }
  __syncthreads();
  double total = 0;
  for (int c = static_cast<int>(threadIdx.x); c < kWidth * W && base + c < job.channels; c += kThreads) {
    double grad = 0, product = 0;
    for (int row = 0; row < kDepth; ++row) {
      grad += sums[0][row][c];
      product += sums[1][row][c];
    }
    const Standard standard = by_position ? Standard{0.0f, 1.0f, 0.0f} : channel_standard(job, sample, base + c);
    total += squares(job, standard.scale * product + standard.shift * grad, grad);
  }
  total = sum_lanes<kThreads>(total);
  if (threadIdx.x == 0) job.partials[number] = static_cast<float>(total);
}

}  // namespace fastqat::affine_grad_norm
