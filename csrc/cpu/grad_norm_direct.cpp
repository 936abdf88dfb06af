// The direct form of per-sample gradient norms: G = sum over positions of g_t u_t^T, a tile of 8 x 48 elements at a time, squared and
// added up where it lies in the first-level cache. See grad_norm_plan.h for the cut and gemm_tile.h for the product.
//
// A task is one sample, group, range of outputs and range of columns. The constants of the plan bound its scratch, about 1 MiB: a box of x
// (unless the kernel sees more at a single position), rows of grad_y that cannot be read where they lie, the task's mask and slope, and its
// sums where the positions take more than one chunk.
#include <torch/csrc/stable/library.h>

#include "buffer.h"
#include "grad_norm_depthwise.h"
#include "grad_norm_factors.h"
#include "grad_norm_rows.h"
#include "levels.h"

namespace fastqat {
namespace {

constexpr int64_t kTile = kTileRows * kTileColumns;

struct Job {
  Plan plan;
  const float *mask, *slope;  // [groups * outputs][taps][channels], or null
  bool bias;
  TileKernel multiply;
  Transpose transpose;
  double* partials;  // [samples][parts]
  float* inner;      // [column tasks][samples][groups * outputs]
};

struct Scratch {
  explicit Scratch(const Plan& plan)
      : x(plan.task_blocks() * plan.window_block() + kLanes),
        grad(plan.packed ? (plan.pass_outputs + kTileRows) * product(plan.chunks.size) : 0),
        tiles(plan.chunked() ? (ceil_div(plan.task_vectors, kTileVectors) + 1) * (ceil_div(plan.task_outputs, kTileRows) + 1) * kTile
                             : kTile),
        inner(plan.task_outputs * kLanes),
        bias(plan.task_outputs),
        mask(plan.factors ? plan.task_vectors * plan.task_outputs * kLanes : 0),
        slope(plan.factors ? plan.task_vectors * plan.task_outputs * kLanes : 0) {}
  Buffer x, grad, tiles, inner, bias;
  Buffer mask, slope;       // of the columns of a task, see pack_factors
  int64_t factors_of = -1;  // the tasks that they are those of
};

struct Part {
  int64_t sample, group;
  int64_t output, outputs;  // of the group
  int64_t first, last;      // vectors
  int64_t block, column_task;
  int64_t index;  // of the partial sum
};

// Tasks that share their columns follow each other where mask or slope are read, so that these stay in the cache.
FASTQAT_INLINE Part part_of(const Plan& plan, int64_t task) {
  const int64_t parts = plan.parts();
  const int64_t index = plan.factors ? task / plan.layer.samples : task % parts;
  const int64_t sample = plan.factors ? task % plan.layer.samples : task / parts;
  const int64_t column_task = index % plan.column_tasks, part = index / plan.column_tasks;
  const int64_t output = part % plan.output_tasks * plan.task_outputs, first = column_task * plan.task_vectors;
  return {sample,
          part / plan.output_tasks,
          output,
          std::min(plan.task_outputs, plan.layer.outputs - output),
          first,
          std::min(first + plan.task_vectors, static_cast<int64_t>(plan.vectors.size())),
          first / plan.vectors_of_block,
          column_task,
          sample * parts + index};
}

template <class T>
FASTQAT_INLINE void load_window(const Job& job, const Part& part, const Box& box, float* out) {
  const Plan& plan = job.plan;
  const Layer& layer = plan.layer;
  const Box window = plan.chunks.inputs(layer, box);
  const int64_t channel = part.block * kLanes, end = ceil_div(part.last, plan.vectors_of_block) * kLanes;
  const BoxSource<T> source{layer.x,         layer.x.at<T>(part.sample, part.group * layer.channels + channel),
                            layer.x.channel, std::min(layer.channels, end) - channel,
                            plan.lanes,      job.transpose};
  load_blocks(source, window, plan.window_block(), out);
}

// Sums of a task over the tiles that are done.
struct TaskSums {
  double lanes[kLanes];
  float* inner;  // [outputs][kLanes]
};

FASTQAT_INLINE void finish_tile(const Job& job, const Part& part, const GemmTile& t, int64_t output, int64_t first, const Scratch& scratch,
                                TaskSums& sums) {
  const Vector* const vectors = job.plan.vectors.data() + first;
  for (int v = 0; v < t.vectors; ++v) {
    if (t.squares) {
      for (int l = 0; l < kLanes; ++l) sums.lanes[l] += keep_if(l < vectors[v].lanes, t.sums[v * kLanes + l]);
      continue;
    }
    const int64_t at = ((first + v - part.first) * part.outputs + output) * kLanes;
    const float* const slope = job.slope ? scratch.slope.data() + at : nullptr;
    add_factored(t.c + v * kLanes, t.rows, scratch.mask.data() + at, slope, sums.lanes, sums.inner + output * kLanes);
  }
}

// Calls body(vector, count, index) for the range of a task in groups of at most kTileVectors, as even as can be.
template <class Body>
FASTQAT_INLINE void for_each_group(const Part& part, const Body& body) {
  const int64_t groups = ceil_div(part.last - part.first, kTileVectors);
  for (int64_t i = 0, v = part.first; i < groups; ++i) {
    const int64_t count = ceil_div(part.last - v, groups - i);
    body(v, static_cast<int>(count), i);
    v += count;
  }
}

struct MultiplyTiles {
  const Job& job;
  const Part& part;
  const Rows& rows;
  const Triple& size;  // of the chunk
  int64_t output;      // of the task, the first of rows
  Scratch& scratch;
  TaskSums& sums;
  bool begins, ends;  // first, last chunk

  FASTQAT_INLINE void operator()(int64_t v, int vectors, int64_t index) const {
    const Plan& plan = job.plan;
    const Vector* const used = plan.vectors.data() + v;
    float squares[kTileColumns];
    GemmTile t{};
    t.vectors = vectors;
    t.a_row = rows.output;
    for (int i = 0; i < vectors; ++i) t.b[i] = scratch.x.data() + used[i].offset + (used[i].block - part.block) * plan.window_block();
    t.planes = size[0], t.lines = size[1], t.width = size[2];
    t.a_plane = rows.stride[0], t.a_line = rows.stride[1], t.a_step = rows.stride[2];
    t.b_plane = plan.x_stride[0], t.b_line = plan.x_stride[1], t.b_step = plan.x_stride[2];
    t.c_row = kTileColumns;
    t.accumulate = !begins;
    t.squares = ends && !plan.factors;
    t.sums = squares;
    const int64_t panels = ceil_div(part.outputs, kTileRows);
    for (int64_t o = 0; o < rows.count; o += kTileRows) {
      t.rows = static_cast<int>(std::min(rows.count - o, int64_t{kTileRows}));
      t.a = rows.at(o);
      t.c = scratch.tiles.data() + (plan.chunked() ? (index * panels + (output + o) / kTileRows) * kTile : 0);
      job.multiply(t);
      if (ends) finish_tile(job, part, t, output + o, v, scratch, sums);
    }
  }
};

template <class T>
FASTQAT_INLINE void add_chunk(const Job& job, const Part& part, const Box& box, bool begins, bool ends, Scratch& scratch, TaskSums& sums) {
  const Plan& plan = job.plan;
  const Layer& layer = plan.layer;
  load_window<T>(job, part, box, scratch.x.data());
  for (int64_t o = 0; o < part.outputs; o += plan.pass_outputs) {
    const T* const grad = layer.grad.at<T>(part.sample, part.group * layer.outputs + part.output + o);
    const Rows rows = load_rows(plan, layer.grad, grad, std::min(plan.pass_outputs, part.outputs - o), box, scratch.grad.data());
    if (job.bias && part.column_task == 0) add_positions(rows, box.size, scratch.bias.data() + o);
    for_each_group(part, MultiplyTiles{job, part, rows, box.size, o, scratch, sums, begins, ends});
  }
}

FASTQAT_INLINE double squares_of(const float* values, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(values[i]) * values[i];
  return sum;
}

FASTQAT_INLINE void finish_task(const Job& job, const Part& part, const Scratch& scratch, const TaskSums& sums) {
  const Plan& plan = job.plan;
  double norm = 0;
  for (int l = 0; l < kLanes; ++l) norm += sums.lanes[l];
  if (job.bias && part.column_task == 0) norm += squares_of(scratch.bias.data(), part.outputs);
  job.partials[part.index] = norm;
  if (!job.slope) return;
  const int64_t outputs = plan.layer.groups * plan.layer.outputs;
  float* const inner =
      job.inner + (part.column_task * plan.layer.samples + part.sample) * outputs + part.group * plan.layer.outputs + part.output;
  for (int64_t o = 0; o < part.outputs; ++o) {
    inner[o] = 0;
    for (int l = 0; l < kLanes; ++l) inner[o] += sums.inner[o * kLanes + l];
  }
}

template <class T>
FASTQAT_INLINE void run_task(const Job& job, int64_t task, Scratch& scratch) {
  const Plan& plan = job.plan;
  const Part part = part_of(plan, task);
  TaskSums sums{{}, scratch.inner.data()};
  if (plan.factors && scratch.factors_of != task / plan.layer.samples) {
    const int64_t row = part.group * plan.layer.outputs + part.output;
    pack_factors(plan, job.mask, row, part.outputs, part.first, part.last, scratch.mask.data());
    if (job.slope) pack_factors(plan, job.slope, row, part.outputs, part.first, part.last, scratch.slope.data());
    scratch.factors_of = task / plan.layer.samples;
  }
  fill_zero(scratch.inner.data(), job.slope ? part.outputs * kLanes : 0);
  fill_zero(scratch.bias.data(), part.outputs);
  const int64_t chunks = plan.chunks.total();
  for (int64_t c = 0; c < chunks; ++c) add_chunk<T>(job, part, plan.chunks.outputs(plan.layer, c), c == 0, c == chunks - 1, scratch, sums);
  finish_task(job, part, scratch, sums);
}

FASTQAT_INLINE void run_tasks(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch(job.plan);
  for (int64_t task = begin; task < end; ++task) {
    if (job.plan.layer.x.type == ScalarType::Float)
      run_task<float>(job, task, scratch);
    else if (job.plan.layer.x.type == ScalarType::BFloat16)
      run_task<bf16>(job, task, scratch);
    else
      run_task<fp16>(job, task, scratch);
  }
}

FASTQAT_LEVELS(run_tasks)

// Partials in order, so that neither threads nor tasks change a bit.
void finish(const Plan& plan, const std::vector<double>& partials, const std::vector<float>& inner, const Tensor& sq_norm,
            const std::optional<Tensor>& inner_out) {
  const int64_t parts = plan.parts(), elements = plan.layer.samples * plan.layer.groups * plan.layer.outputs;
  for (int64_t n = 0; n < plan.layer.samples; ++n) {
    double sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += partials[n * parts + p];
    data<float>(sq_norm)[n] = static_cast<float>(sum);
  }
  if (!inner_out) return;
  float* const out = data<float>(*inner_out);
  for (int64_t i = 0; i < elements; ++i) {
    float sum = 0;
    for (int64_t c = 0; c < plan.column_tasks; ++c) sum += inner[c * elements + i];
    out[i] = sum;
  }
}

void dense_norms(const Layer& layer, const std::optional<Tensor>& mask, const std::optional<Tensor>& slope, const Tensor& sq_norm,
                 const std::optional<Tensor>& inner_out, bool bias) {
  const Plan plan = make_plan(layer, mask || slope);
  std::vector<double> partials(static_cast<size_t>(plan.tasks()));
  std::vector<float> inner(static_cast<size_t>(slope ? plan.column_tasks * layer.samples * layer.groups * layer.outputs : 0));
  const Job job{plan, optional_data(mask), optional_data(slope), bias, tile_kernel(), transpose_kernel(), partials.data(), inner.data()};
  const auto loops = FASTQAT_AT_LEVEL(run_tasks);
  torch::stable::parallel_for(0, plan.tasks(), 1, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
  finish(plan, partials, inner, sq_norm, inner_out);
}

void set_zero(const Tensor& t) { std::fill_n(data<float>(t), t.numel(), 0.0f); }

// mask and slope [O, kd, kh, kw, C / groups] contiguous; sq_norm [N] and inner [N, O] are set.
void grad_sq_norm_direct_cpu(Tensor x, Tensor grad_y, std::optional<Tensor> mask, std::optional<Tensor> slope, Tensor sq_norm,
                             std::optional<Tensor> inner, std::vector<int64_t> numbers, bool bias) {
  if (x.numel() == 0 || grad_y.numel() == 0) {
    set_zero(sq_norm);
    if (inner) set_zero(*inner);
    return;
  }
  const Layer layer = make_layer(x, grad_y, numbers);
  if (is_depthwise(layer))
    depthwise_norms(layer, mask, slope, sq_norm, inner, bias);
  else
    dense_norms(layer, mask, slope, sq_norm, inner, bias);
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("grad_sq_norm_direct", TORCH_BOX(&fastqat::grad_sq_norm_direct_cpu)); }
