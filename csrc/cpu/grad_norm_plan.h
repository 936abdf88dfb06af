// How the direct form is cut into tasks and chunks. The cut depends on the layer's shape only: results do not depend on threads, nor a
// sample's on its batch.
//
// The gradient of one sample's weight is outputs x columns; its columns are worked on as vectors of kLanes, read from x at every position:
//   blocks   scratch [block of kLanes channels][box of x][kLanes]: kLanes channels at one tap
//   runs     few channels, scratch [box of x][channels]: kLanes of the channels of neighbouring taps
#pragma once

#include <algorithm>
#include <vector>

#include "gemm_tile.h"
#include "grad_norm_chunks.h"

namespace fastqat {

constexpr int64_t kChunkPositions = 1024;    // output positions at a time, about
constexpr int64_t kWindowFloats = 96 << 10;  // scratch for x
constexpr int64_t kTileFloats = 64 << 10;    // sums kept from chunk to chunk
constexpr int64_t kRowFloats = 64 << 10;     // scratch for grad_y
constexpr int64_t kPackedOutputs = 256;      // packed at a time, so that rows of memory are read in long pieces
constexpr int64_t kFactorFloats = 64 << 10;  // mask or slope of one task: stays in the cache from sample to sample
constexpr int64_t kTaskOutputs = 2048;
constexpr double kTaskOperations = 3e7;  // enough for the start of a task not to count
constexpr int64_t kPackedVectors = 16;   // at least, where every task has to pack grad_y

struct Vector {
  int64_t offset;  // from a position's place in its block
  int64_t column;  // of the first lane, as [taps][channels]
  int32_t block;   // of channels
  int32_t lanes;   // that count
};

struct Plan {
  Layer layer;
  int64_t lanes;  // of a position in scratch
  int64_t blocks;
  Chunks chunks;
  Triple x_stride;  // floats of scratch between positions
  std::vector<Vector> vectors;
  int64_t vectors_of_block;
  int64_t task_vectors, column_tasks, task_outputs, output_tasks, pass_outputs;
  bool packed;   // grad_y goes through scratch: it is read where it lies only in fp32 with positions side by side
  bool factors;  // there is a mask or a slope

  bool chunked() const { return chunks.total() > 1; }
  int64_t window_block() const { return product(chunks.window) * lanes; }
  int64_t parts() const { return layer.groups * output_tasks * column_tasks; }
  int64_t tasks() const { return layer.samples * parts(); }
  int64_t task_blocks() const { return std::min(blocks, ceil_div(task_vectors - 1, vectors_of_block) + 1); }
};

// The columns of one tap, or of a run of neighbouring taps, as vectors.
inline void add_vectors(Plan& plan, int64_t offset, int64_t column, int64_t block, int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    const auto lanes = static_cast<int32_t>(std::min(count - begin, int64_t{kLanes}));
    plan.vectors.push_back({offset + begin, column + begin, static_cast<int32_t>(block), lanes});
  }
}

inline void list_vectors(Plan& plan) {
  const Layer& layer = plan.layer;
  const Triple& window = plan.chunks.window;
  const Triple from = {window[1] * window[2] * plan.lanes, window[2] * plan.lanes, plan.lanes};
  const int64_t run = plan.lanes < kLanes && layer.dilation[2] == 1 ? layer.kernel[2] : 1;
  const Triple taps = {layer.kernel[0], layer.kernel[1], layer.kernel[2] / run};
  for (int64_t block = 0; block < plan.blocks; ++block) {
    int64_t column = block * kLanes;
    for_each_point(taps, [&](const Triple& tap) {
      int64_t offset = 0;
      for (int i = 0; i < kSpatial; ++i) offset += tap[i] * layer.dilation[i] * from[i];
      add_vectors(plan, offset, column, block, std::min(layer.channels - block * kLanes, plan.lanes) * run);
      column += layer.channels * run;
    });
  }
  for (int i = 0; i < kSpatial; ++i) plan.x_stride[i] = layer.step[i] * from[i];
  plan.vectors_of_block = static_cast<int64_t>(plan.vectors.size()) / plan.blocks;
}

// Vectors of one task: what fits the cache, and no more than it takes to be worth a task.
inline void cut_columns(Plan& plan) {
  const Layer& layer = plan.layer;
  const int64_t all = static_cast<int64_t>(plan.vectors.size()), vector_sums = ceil_div(plan.task_outputs, kTileRows) * kTileRows * kLanes;
  int64_t most = std::max(static_cast<int64_t>(kTaskOperations / (2.0 * static_cast<double>(layer.positions() * vector_sums))),
                          plan.packed ? kPackedVectors : int64_t{kTileVectors});
  most = std::min(most, std::max(kWindowFloats / plan.window_block(), int64_t{1}) * plan.vectors_of_block);
  if (plan.chunked()) most = std::min(most, kTileFloats / vector_sums);
  if (plan.factors) most = std::min(most, kFactorFloats / vector_sums);
  most = std::max(most, int64_t{kTileVectors});
  const int64_t unit = most >= plan.vectors_of_block ? plan.vectors_of_block : most;
  plan.task_vectors = std::min(all, evenly(ceil_div(all, unit), most / unit) * unit);
  plan.column_tasks = ceil_div(all, plan.task_vectors);
}

inline Plan make_plan(const Layer& layer, bool factors) {
  Plan plan{};
  plan.layer = layer;
  plan.factors = factors;
  plan.lanes = std::min(layer.channels, int64_t{kLanes});
  plan.blocks = ceil_div(layer.channels, kLanes);
  plan.packed = layer.grad.type != ScalarType::Float || layer.grad.channel == 1;
  plan.task_outputs = std::min(layer.outputs, ceil_div(evenly(layer.outputs, kTaskOutputs), kTileRows) * kTileRows);
  plan.output_tasks = ceil_div(layer.outputs, plan.task_outputs);
  const int64_t positions = plan.packed ? kRowFloats / std::min(plan.task_outputs, kPackedOutputs) : kChunkPositions;
  plan.chunks = make_chunks(layer, std::min(positions, kChunkPositions), kWindowFloats / plan.lanes);
  const int64_t pass = std::max(kRowFloats / product(plan.chunks.size) / kTileRows, int64_t{1}) * kTileRows;
  plan.pass_outputs = plan.packed ? std::min(plan.task_outputs, pass) : plan.task_outputs;
  list_vectors(plan);
  cut_columns(plan);
  return plan;
}

}  // namespace fastqat
