// Per-sample squared gradient norms by Gram matrices of positions, on the CPU: the operator, and the loops of the plain form, in which
// u_t is unfolded, tap by tap, into packed strips.
#include "grad_norm_gram.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "grad_norm_shifted.h"
#include "levels.h"

namespace fastqat {
namespace {

using Job = GramJob;

struct Scratch {
  explicit Scratch(const Job& job)
      : u(job.strips() * job.layer.columns() * kLanes), g(job.strips() * job.layer.outputs * kLanes), tiles(2 * kSide * kSide) {}
  Buffer u, g, tiles;
};

FASTQAT_INLINE void pack(const Job& job, const Segment& task, int64_t block, const Scratch& s) {
  const int64_t channels = job.layer.channels, columns = job.layer.columns();
  for (int64_t k = 0; k < job.layer.taps(); ++k)
    pack_block(job, task, job.layer.x, channels, job.x_maps[k], block, columns * kLanes, s.u.data() + k * channels * kLanes);
  pack_grad(job, task, block, s.g.data());
}

// sum of u * g over the pairs of one tile: each twice, since (t', t) is no tile of its own; on the diagonal up to each row's own column.
FASTQAT_INLINE double tile_sum(float* u, const float* g, int64_t rows, bool diagonal) {
  float lanes[kLanes] = {};
  for (int64_t r = 0; r < rows; ++r, u += kSide, g += kSide) {
    const int64_t width = diagonal ? (r / kLanes + 1) * kLanes : kSide;
    if (diagonal) {
      std::fill(u + r + 1, u + width, 0.0f);
      u[r] *= 0.5f;
    }
    for (int64_t c = 0; c < width; c += kLanes)
      for (int l = 0; l < kLanes; ++l) lanes[l] += u[c + l] * g[c + l];
  }
  return 2 * fold_lanes(lanes);
}

FASTQAT_INLINE double block_sum(const Job& job, int64_t block, const Scratch& s) {
  const int64_t columns = job.layer.columns(), outputs = job.layer.outputs, rows = side_of(job.grad_map.size(), block);
  float* const u_tile = s.tiles.data();
  float* const g_tile = u_tile + kSide * kSide;
  double sum = 0;
  for (int64_t b = 0; b <= block; ++b) {
    gram_tile(job.kernel, columns, s.u.data() + block * kSide * columns, rows, s.u.data() + b * kSide * columns, b == block, u_tile);
    gram_tile(job.kernel, outputs, s.g.data() + block * kSide * outputs, rows, s.g.data() + b * kSide * outputs, b == block, g_tile);
    sum += tile_sum(u_tile, g_tile, rows, b == block);
  }
  return sum;
}

FASTQAT_INLINE double extras(const Job& job, const Segment& task, const Scratch& s) {
  const double norm = job.bias ? bias_norm(s.g.data(), job.layer.outputs, job.grad_map.strips()) : 0;
  if (job.first_entry.empty()) return norm;
  return norm - cleared_norm(job, task.group, s.g.data(), [&](int64_t column) {
    return StripRow{s.u.data() + column * kLanes, job.layer.columns() * kLanes};
  });
}

FASTQAT_INLINE void gram_tasks(const Job& job, int64_t begin, int64_t end) {
  const Scratch scratch(job);
  for (int64_t i = begin; i < end; ++i) {
    const Segment task = segment_of(job, i);
    for (int64_t block = 0; block < task.last; ++block) {
      pack(job, task, block, scratch);
      if (block >= task.first) job.partial(task.unit)[block] = block_sum(job, block, scratch);
    }
    if (task.last == job.blocks()) job.partial(task.unit)[job.blocks()] = extras(job, task, scratch);
  }
}

FASTQAT_LEVELS(gram_tasks)

// Of every output position, the element that a tap sees there.
PositionMap tap_map(const Layer& layer, const Triple& tap) {
  std::vector<int64_t> offsets;
  for_each_point(layer.grad.size, [&](const Triple& at) {
    int64_t offset = 0;
    bool inside = true;
    for (int d = 0; d < kSpatial; ++d) {
      const int64_t i = at[d] * layer.step[d] + tap[d] * layer.dilation[d] - layer.padding[d];
      inside = inside && i >= 0 && i < layer.x.size[d];
      offset += i * layer.x.stride[d];
    }
    offsets.push_back(inside ? offset : kPadding);
  });
  return make_map(std::move(offsets), step_of(layer.grad.size, layer.x.stride, layer.step));
}

PositionMap output_map(const LayerTensor& grad) {
  std::vector<int64_t> offsets;
  for_each_point(grad.size, [&](const Triple& at) {
    offsets.push_back(at[0] * grad.stride[0] + at[1] * grad.stride[1] + at[2] * grad.stride[2]);
  });
  return make_map(std::move(offsets), step_of(grad.size, grad.stride, {1, 1, 1}));
}

// mask [groups * O][taps * C], 0 or 1: what is cleared, by group and column.
void list_entries(GramJob& job, const float* mask) {
  const int64_t outputs = job.layer.outputs, columns = job.layer.columns();
  job.first_entry = {0};
  for (int64_t group = 0; group < job.layer.groups; ++group, mask += outputs * columns) {
    const auto begin = static_cast<std::ptrdiff_t>(job.entries.size());
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t k = 0; k < columns; ++k)
        if (mask[o * columns + k] == 0.0f) job.entries.push_back({static_cast<int32_t>(o), static_cast<int32_t>(k)});
    std::stable_sort(job.entries.begin() + begin, job.entries.end(), [](Entry a, Entry b) { return a.column < b.column; });
    job.first_entry.push_back(job.entries.size());
  }
}

// Rows of tiles per segment, so that all have about the same number of tiles: one segment where the units keep all threads busy.
std::vector<int64_t> cut_blocks(int64_t blocks, int64_t units) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t wanted = units == 0 || threads == 1 || units >= 2 * threads ? 1 : ceil_div(2 * threads, units);
  const int64_t segments = std::min(wanted, blocks);
  std::vector<int64_t> cuts{0};
  for (int64_t s = 1; s < segments; ++s) {
    const double share = static_cast<double>(s) / static_cast<double>(segments);
    const auto cut = static_cast<int64_t>(std::lround(std::sqrt(share) * static_cast<double>(blocks)));
    if (cut > cuts.back() && cut < blocks) cuts.push_back(cut);
  }
  cuts.push_back(blocks);
  return cuts;
}

void run(const GramJob& job, int64_t begin, int64_t end) {
  if (job.plan)
    run_shifted(job, begin, end);
  else
    FASTQAT_AT_LEVEL(gram_tasks)(job, begin, end);
}

// Rounding may bring a sum of cancelling terms below 0.
void add_partials(const GramJob& job, float* sq_norm) {
  const int64_t count = job.layer.groups * (job.blocks() + 1);
  for (int64_t n = 0; n < job.layer.samples; ++n) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += job.partials[n * count + i];
    sq_norm[n] = static_cast<float>(sum < 0 ? 0 : sum);
  }
}

// The mask is of zeros and ones, as the straight-through estimator makes it: what it clears is taken off the sum over pairs.
void grad_sq_norm_gram_cpu(Tensor x, Tensor grad_y, std::optional<Tensor> mask, Tensor sq_norm, std::vector<int64_t> numbers, bool bias,
                           bool shifted) {
  GramJob job{};
  job.layer = make_layer(x, grad_y, numbers);
  job.grad_map = output_map(job.layer.grad);
  job.kernel = tile_kernel();
  job.transpose = transpose_kernel();
  job.bias = bias;
  if (mask) list_entries(job, data<const float>(*mask));
  const int64_t units = job.layer.samples * job.layer.groups;
  job.cuts = cut_blocks(job.blocks(), units);
  std::vector<double> partials(static_cast<size_t>(units * (job.blocks() + 1)));
  job.partials = partials.data();
  ShiftPlan plan;
  if (shifted) {
    plan = make_shift_plan(job.layer, mask.has_value());
    job.plan = &plan;
  } else {
    for_each_point(job.layer.kernel, [&](const Triple& tap) { job.x_maps.push_back(tap_map(job.layer, tap)); });
  }
  if (job.blocks() > 0)
    torch::stable::parallel_for(0, units * job.segments(), 1, [&](int64_t begin, int64_t end) { run(job, begin, end); });
  add_partials(job, data<float>(sq_norm));
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("grad_sq_norm_gram", TORCH_BOX(&fastqat::grad_sq_norm_gram_cpu)); }
