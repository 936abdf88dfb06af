// Kernels of fake quantization: every element is read once, in 128-bit accesses where pointers allow. Sums take two stages: a few
// terms in fp32, the rest in fp64, in an order that only the cut decides; `FinishSums` adds the partials. No atomics.
#pragma once

#include "fake_quant_cut.h"
#include "fake_quant_maps.h"
#include "sums.h"

namespace fastqat {

constexpr int kRun = 8;  // terms of a column that are added in fp32 before they go on to fp64

// Elements [begin, end) by `lanes` threads: whole vectors, and one by one what lies before the first and after the last of them.
template <class Map>
__device__ __forceinline__ void walk(Map& map, const SameRange& range, int64_t begin, int64_t end, int lane, int lanes) {
  constexpr int V = kVector<typename Map::T>, U = Map::kUnroll;
  const int64_t up = (begin + V - 1) / V * V, down = end / V * V;
  const int64_t first = up < end ? up : end, last = down > first ? down : first, step = int64_t{lanes} * V;
  for (int64_t i = begin + lane; i < first; i += lanes) map.one(i, 0, range[0]);
  int64_t i = first + lane * V;
  for (; i + (U - 1) * step < last; i += U * step) map.template vectors<U>(i, step, range);
  for (; i < last; i += step) map.template vectors<1>(i, 0, range);
  for (int64_t j = last + lane; j < end; j += lanes) map.one(j, 0, range[0]);
}

template <class Map>
__device__ __forceinline__ void walk_piece(Map& map, const Job& job, const RowPiece& p, int lane, int lanes) {
  const SameRange range{range_of(job, p.scale)};
  for (int64_t row = 0; row < p.rows; ++row) walk(map, range, p.begin + row * p.stride, p.begin + row * p.stride + p.length, lane, lanes);
}

// One element of the partials, or of the gradients themselves where there is nothing left to add.
__device__ __forceinline__ void put(double sum, int64_t i, const Job& job, double* partials, float* grad) {
  if (grad == nullptr) return;
  if (job.whole)
    grad[i] = static_cast<float>(sum * job.factor);
  else
    partials[i] = sum;
}

// Sums of a thread of a row: the terms of a vector in fp32, as a tree, the vectors in fp64.
template <bool kZeroPoint>
struct RowSums {
  double scale = 0, zero_point = 0;

  template <int V>
  __device__ __forceinline__ void add(QuantGrad (&grads)[V]) {
#pragma unroll
    for (int width = V / 2; width > 0; width /= 2) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        grads[j].scale += grads[j + width].scale;
        grads[j].zero_point += grads[j + width].zero_point;
      }
    }
    add(grads[0], 0);
  }
  __device__ __forceinline__ void add(const QuantGrad& grad, int) {
    scale += grad.scale;
    if (kZeroPoint) zero_point += grad.zero_point;
  }
};

// What one block of threads does, by number: the kernels of fake_quant_launch.h run these on one tensor or on many.
template <class Map>
struct Rows {
  using Cut = RowCut;

  __device__ __forceinline__ static void run(const Job& job, const Cut& cut, int64_t block) {
    const int64_t piece = (block * kThreads + threadIdx.x) / cut.lanes;
    if (piece >= cut.pieces) return;
    Map map(job);
    walk_piece(map, job, row_piece(cut, piece), static_cast<int>(threadIdx.x) & (cut.lanes - 1), cut.lanes);
  }
};

template <class T, bool kReciprocal, bool kAligned, bool kZeroPoint>
struct BackwardRows {
  using Cut = RowCut;

  __device__ __forceinline__ static void run(const Job& job, const Cut& cut, int64_t block) {
    const int lane = static_cast<int>(threadIdx.x) & (cut.lanes - 1);
    const int64_t piece = (block * kThreads + threadIdx.x) / cut.lanes;
    RowSums<kZeroPoint> sums;
    Backward<T, kReciprocal, kAligned, RowSums<kZeroPoint>> map(job, sums);
    if (piece < cut.pieces) walk_piece(map, job, row_piece(cut, piece), lane, cut.lanes);
    const double scale = sum_lanes<kThreads>(sums.scale, cut.lanes);
    const double zero_point = kZeroPoint ? sum_lanes<kThreads>(sums.zero_point, cut.lanes) : 0;
    if (lane != 0 || piece >= cut.pieces) return;
    put(scale, piece, job, job.scale_sums, job.grad_scale);
    if (kZeroPoint) put(zero_point, piece, job, job.zero_point_sums, job.grad_zero_point);
  }
};

// Sums of a thread that keeps to V columns: kRun rows in fp32, then on to the thread's own fp64 slots in shared memory.
template <int V, bool kZeroPoint>
struct ColumnSums {
  double (*slots)[kThreads];  // [V] for the scale, then [V] for the zero point
  float scale[V] = {}, zero_point[V] = {};

  __device__ __forceinline__ void add(const QuantGrad (&grads)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) add(grads[j], j);
  }
  __device__ __forceinline__ void add(const QuantGrad& grad, int j) {
    scale[j] += grad.scale;
    if (kZeroPoint) zero_point[j] += grad.zero_point;
  }
  __device__ __forceinline__ void flush() {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      slots[j][threadIdx.x] += scale[j];
      scale[j] = 0;
      if (!kZeroPoint) continue;
      slots[V + j][threadIdx.x] += zero_point[j];
      zero_point[j] = 0;
    }
  }
};

template <int V, bool kZeroPoint>
__device__ __forceinline__ RangeEach<V> ranges_of(const Job& job, const ColumnCut& cut, const ColumnPiece& p) {
  RangeEach<V> each;
  int64_t i = p.column, channel = cut.inner.split(i);
  cut.channels.split(channel);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const int64_t scale = p.block * cut.channels.d + channel;
    each.ranges[j] = kZeroPoint ? range_of(job, scale) : make_range(job.scale[scale], 0.0f, job.qmin, job.qmax);
    if (++i < cut.inner.d) continue;
    i = 0;
    if (++channel == cut.channels.d) channel = 0;
  }
  return each;
}

// One vector of columns, down the rows; the last row of a block may end within the vector.
template <class Map, int V>
__device__ __forceinline__ void walk_columns(Map& map, const RangeEach<V>& ranges, const ColumnCut& cut, const ColumnPiece& p) {
  constexpr int U = Map::kUnroll < 2 ? 1 : 2;
  const int64_t step = kDepth * cut.columns;
  int64_t i = p.begin;
  int rows = 0;
  for (int64_t row = p.row; row < p.last; row += U * kDepth, i += U * step) {
    if (row + kDepth < p.last && i + step + V <= p.end) {
      map.template vectors<U>(i, step, ranges);
    } else {
      for (int64_t k = i, r = row; r < p.last && r < row + U * kDepth; k += step, r += kDepth) {
        if (k + V <= p.end) {
          map.template vectors<1>(k, 0, ranges);
          continue;
        }
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (k + j < p.end) map.one(k + j, j, ranges[j]);
      }
    }
    rows += U;
    if (rows % kRun == 0) map.flush();
  }
  map.flush();
}

template <class Map>
struct Columns {
  using Cut = ColumnCut;

  __device__ __forceinline__ static void run(const Job& job, const Cut& cut, int64_t block) {
    constexpr int V = kVector<typename Map::T>;
    const ColumnPiece p = column_piece(cut, block, static_cast<int>(threadIdx.x), V);
    Map map(job);
    walk_columns(map, ranges_of<V, true>(job, cut, p), cut, p);
  }
};

template <class T, bool kReciprocal, bool kAligned, bool kZeroPoint>
struct BackwardColumns {
  using Cut = ColumnCut;

  __device__ __forceinline__ static void run(const Job& job, const Cut& cut, int64_t block) {
    constexpr int V = kVector<T>;
    __shared__ double slots[kZeroPoint ? 2 * V : V][kThreads];
    for (auto& slot : slots) slot[threadIdx.x] = 0;
    const ColumnPiece p = column_piece(cut, block, static_cast<int>(threadIdx.x), V);
    ColumnSums<V, kZeroPoint> sums{slots};
    Backward<T, kReciprocal, kAligned, ColumnSums<V, kZeroPoint>> map(job, sums);
    walk_columns(map, ranges_of<V, kZeroPoint>(job, cut, p), cut, p);
    __syncthreads();
    const int column = static_cast<int>(threadIdx.x), j = column % V;
    if (column >= kWidth * V || column >= p.inside) return;
    double scale = 0, zero_point = 0;
    for (int t = column / V; t < kThreads; t += kWidth) {
      scale += slots[j][t];
      if (kZeroPoint) zero_point += slots[V + j][t];
    }
    put(scale, p.partials + column, job, job.scale_sums, job.grad_scale);
    if (kZeroPoint) put(zero_point, p.partials + column, job, job.zero_point_sums, job.grad_zero_point);
  }
};

// Second stage. Partials lie as [blocks][repeats][channels][run]; `lanes` threads add those of one scale.
struct Partials {
  int64_t scales, repeats, terms;
  Divider channels, run;
  int lanes;
};

__device__ __forceinline__ double sum_partials(const Partials& cut, const double* partials, int64_t scale, int lane) {
  int64_t channel = scale;
  const int64_t block = cut.channels.split(channel);
  double total = 0;
  for (int64_t term = lane; term < cut.terms; term += cut.lanes) {
    int64_t i = term;
    const int64_t repeat = cut.run.split(i);
    total += partials[((block * cut.repeats + repeat) * cut.channels.d + channel) * cut.run.d + i];
  }
  return total;
}

struct FinishSums {
  using Cut = Partials;

  __device__ __forceinline__ static void run(const Job& job, const Cut& cut, int64_t block) {
    __shared__ double sums[kThreads];
    const int t = static_cast<int>(threadIdx.x), across = kThreads / cut.lanes, lane = t / across;
    const int64_t scale = block * across + t % across;
    for (int which = 0; which < 2; ++which) {
      float* const grad = which == 0 ? job.grad_scale : job.grad_zero_point;
      if (grad == nullptr) continue;
      const double* const partials = which == 0 ? job.scale_sums : job.zero_point_sums;
      __syncthreads();
      sums[t] = scale < cut.scales ? sum_partials(cut, partials, scale, lane) : 0;
      for (int half = cut.lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half) sums[t] += sums[t + half * across];
      }
      if (lane == 0 && scale < cut.scales) grad[scale] = static_cast<float>(sums[t] * job.factor);
    }
  }
};

}  // namespace fastqat
