// The last layer's gradient norm per sample, |p - y| * sqrt(bias + |h|^2): a group of threads reads a row of logits and one of features.
#pragma once

#include <algorithm>

#include "divider.h"
#include "launch.h"
#include "logit_rows.h"

namespace fastqat::grand_last {

using logits::kChunk;
using logits::Matrix;

constexpr int kThreads = 256, kChunks = 2;  // chunks of a thread in a tile
constexpr int64_t kWarpClasses = 1024;      // of a row for which a warp is enough

struct Job {
  Matrix logits, features;
  const int64_t* targets;
  float* norm;
  int64_t rows, classes, width;
  double bias;  // 1 or 0
  int shift;    // 1 << shift threads for a row
};

// The sum of squares of what the thread reads of row i.
__device__ __forceinline__ double sum_of_squares(const Job& job, int64_t i, int lane) {
  double sum = 0;
  logits::for_tiles<kChunks>(job.width, lane, job.shift, [&](const auto& span) {
    logits::Tile<kChunks> tile;
    logits::load_tile(job.features, i, span, tile, 0.0f);
    float squares = 0;
    logits::for_tile(span, [&](int k, int j) { squares = __fmaf_rn(tile.at[k][j], tile.at[k][j], squares); });
    sum += squares;
  });
  return sum_lanes<kThreads>(sum, 1 << job.shift);
}

// Blocks count as groups of rows. Threads behind the last row work on it too, since the others count on them, but store nothing.
__global__ void __launch_bounds__(kThreads) grand_last_kernel(const __grid_constant__ Job job, int64_t first) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread & ((1 << job.shift) - 1);
  const int64_t own = (first + blockIdx.x) * (kThreads >> job.shift) + (thread >> job.shift);
  const int64_t i = own < job.rows ? own : job.rows - 1;
  logits::Student student;
  logits::for_tiles<kChunks>(job.classes, lane, job.shift, [&](const auto& span) {
    logits::Tile<kChunks> tile;
    logits::load_tile(job.logits, i, span, tile);
    student.add(tile, span);
  });
  const double squares = sum_of_squares(job, i, lane);
  student.fold<kThreads>(1 << job.shift);
  if (lane != 0 || own >= job.rows) return;
  const int64_t target = job.targets[i];
  const bool exists = target >= 0 && target < job.classes;
  const double error = logits::error_norm(student, exists ? logits::load_one(job.logits, i, target) : logits::kNaN);
  job.norm[i] = static_cast<float>(error * sqrt(job.bias + squares));
}

inline void run(Job job, cudaStream_t stream) {
  job.shift = logits::shift_of(std::max(job.classes, job.width), kWarpClasses, kThreads);
  launch_blocks(grand_last_kernel, divide_up(job.rows, kThreads >> job.shift), kThreads, stream, job);
}

}  // namespace fastqat::grand_last
