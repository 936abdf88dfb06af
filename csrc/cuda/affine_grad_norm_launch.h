// Launches for layers with an affine part: statistics where a sample has its own, sums over rows or columns, their squares' sum.
#pragma once

#include <limits>

#include "affine_grad_norm_kernels.h"
#include "finish.h"
#include "types.h"

namespace fastqat::affine_grad_norm {

constexpr int64_t kLong = 2048;  // elements that a whole block of threads works on together, not a warp

struct Shape {
  int64_t samples, channels, positions, groups;
  bool channels_inner;
  Kind kind;

  bool own_statistics() const { return kind == Kind::group || kind == Kind::position || kind == Kind::rms; }
  bool by_position() const { return kind == Kind::position || kind == Kind::rms; }
  bool empty() const { return samples * channels * positions == 0; }
  int64_t cells() const { return own_statistics() ? samples * (by_position() ? positions : groups) : 0; }
};

inline bool on_boundaries(const void* data, int64_t sample, int64_t step, int64_t length, int vector) {
  return on_boundary(data) && sample % vector == 0 && step % vector == 0 && length % vector == 0;
}

inline int lanes_of(int64_t elements) { return elements < kLong ? 32 : kThreads; }

inline bool reads_vectors(const Job& job, const Shape& s, Storage storage) {
  const int64_t length = s.channels_inner ? s.channels : s.positions;
  const int vector = vector_of(storage);
  return on_boundaries(job.x, job.x_sample, job.x_step, length, vector) &&
         on_boundaries(job.grad_y, job.grad_sample, job.grad_step, length, vector);
}

inline CellCut cut_cells(const Job& job, const Shape& s, Storage storage) {
  const int64_t width = s.channels / s.groups;
  int64_t first = job.x_step, rows = 1, length = s.channels;
  if (!s.by_position()) {
    first = s.channels_inner ? width : width * job.x_step;
    rows = s.channels_inner ? s.positions : width;
    length = s.channels_inner ? width : s.positions;
    if (job.x_step == length) {  // rows without a gap are one
      length *= rows;
      rows = 1;
    }
  }
  const bool vectors =
      on_boundaries(job.x, job.x_sample, rows > 1 ? job.x_step : 0, length, vector_of(storage)) && first % vector_of(storage) == 0;
  CellCut cut{s.cells(), first, rows, job.x_step};
  cut.per_sample = Divider(s.by_position() ? s.positions : s.groups);
  cut.length = Divider(length);
  cut.share = 1.0 / static_cast<double>(rows * length);
  cut.lanes = lanes_of(rows * length);
  cut.vectors = vectors;
  return cut;
}

inline int64_t channel_blocks(const Job& job, const Shape& s, Storage storage) {
  return divide_up(s.channels, kWidth * (reads_vectors(job, s, storage) ? vector_of(storage) : 1));
}

// Floats of the partials; a job needs Shape::cells standards as well.
inline int64_t room_of(const Job& job, const Shape& s, Storage storage) {
  if (s.empty()) return 0;
  return s.samples * (s.channels_inner ? channel_blocks(job, s, storage) : s.channels);
}

template <class T>
void launch_sums(const Job& job, const Shape& s, Storage storage, cudaStream_t stream) {
  if (!s.channels_inner) {
    const RowCut cut{s.samples * s.channels, Divider(s.channels), lanes_of(s.positions)};
    return launch_blocks(rows_kernel<T>, divide_up(cut.rows * cut.lanes, kThreads), kThreads, stream, job, cut);
  }
  const int64_t blocks = channel_blocks(job, s, storage);
  by_flag(job.vectors, [&](auto vectors) {
    launch_blocks(columns_kernel < T, vectors() ? kVector<T> : 1 >, s.samples * blocks, kThreads, stream, job, Divider(blocks));
  });
}

// sq_norm [N]; job.partials has room_of floats and job.standards room for Shape::cells.
inline void run(Job job, const Shape& s, Storage storage, float* sq_norm, cudaStream_t stream) {
  const int64_t room = room_of(job, s, storage);
  job.vectors = reads_vectors(job, s, storage);
  if (room > 0)
    by_storage(storage, [&](auto in) {
      using T = typename decltype(in)::type;
      if (s.own_statistics()) {
        const CellCut cut = cut_cells(job, s, storage);
        launch_blocks(standard_kernel<T>, divide_up(cut.cells * cut.lanes, kThreads), kThreads, stream, job, cut);
      }
      launch_sums<T>(job, s, storage, stream);
    });
  finish(job.partials, sq_norm, s.samples, room, 0.0f, stream);
}

inline Job make_job(const Shape& s, double eps, bool weight, bool bias) {
  Job job{};
  job.channels = s.channels;
  job.positions = s.positions;
  job.groups = s.groups;
  job.group_channels = Divider(std::max<int64_t>(1, s.channels / s.groups));
  job.eps = eps;
  job.kind = s.kind;
  job.limit = s.kind == Kind::negative ? 0.0f : std::numeric_limits<float>::infinity();
  job.weight = weight;
  job.bias = bias;
  return job;
}

}  // namespace fastqat::affine_grad_norm
