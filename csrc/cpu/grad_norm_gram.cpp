// Per-sample squared gradient norms by Gram matrices of positions, on the CPU: the operator, and the loops of the plain form, in which
// u_t is unfolded, tap by tap, into packed strips.
#include "grad_norm_gram.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

#include "grad_norm_shifted.h"

namespace fastqat {
namespace {

using Job = GramJob;

struct Scratch {
  explicit Scratch(const Job& job)
      : u(job.strips() * job.layer.columns() * kLanes), g(job.strips() * job.layer.outputs * kLanes), tiles(2 * kSide * kSide) {}
  Buffer u, g, tiles;
};

void pack(const Job& job, const Segment& task, int64_t block, const Scratch& s) {
  const int64_t channels = job.layer.channels, columns = job.layer.columns();
  for (int64_t k = 0; k < job.layer.taps(); ++k)
    pack_block(job, task, job.layer.x, channels, job.x_maps[k], block, columns * kLanes, s.u.data() + k * channels * kLanes);
  pack_grad(job, task, block, s.g.data());
}

// sum of u * g over the pairs of one tile: each twice, since (t', t) is no tile of its own; on the diagonal up to each row's own column.
double tile_sum(const Job& job, float* u, const float* g, int64_t rows, bool diagonal) {
  if (!diagonal) return 2 * job.loops.dot(u, kSide, g, kSide, rows, kTileVectors);
  double sum = 0;
  for (int64_t first = 0; first < rows; first += kLanes) {
    const int64_t last = std::min<int64_t>(first + kLanes, rows);
    for (int64_t r = first; r < last; ++r) {
      std::fill(u + r * kSide + r + 1, u + r * kSide + first + kLanes, 0.0f);
      u[r * kSide + r] *= 0.5f;
    }
    sum += job.loops.dot(u + first * kSide, kSide, g + first * kSide, kSide, last - first, static_cast<int>(first / kLanes) + 1);
  }
  return 2 * sum;
}

double block_sum(const Job& job, int64_t block, const Scratch& s) {
  const int64_t columns = job.layer.columns(), outputs = job.layer.outputs, rows = side_of(job.grad_map.size(), block);
  float* const u_tile = s.tiles.data();
  float* const g_tile = u_tile + kSide * kSide;
  double sum = 0;
  for (int64_t b = 0; b <= block; ++b) {
    gram_tile(job.kernel, columns, s.u.data() + block * kSide * columns, rows, s.u.data() + b * kSide * columns, b == block, u_tile);
    gram_tile(job.kernel, outputs, s.g.data() + block * kSide * outputs, rows, s.g.data() + b * kSide * outputs, b == block, g_tile);
    sum += tile_sum(job, u_tile, g_tile, rows, b == block);
  }
  return sum;
}

void run_gram(const Job& job, int64_t begin, int64_t end) {
  const Scratch scratch(job);
  for (int64_t i = begin; i < end; ++i) {
    const Segment task = segment_of(job, i);
    for (int64_t block = 0; block < task.last; ++block) {
      pack(job, task, block, scratch);
      if (block >= task.first) job.partial(task.unit)[block] = block_sum(job, block, scratch);
    }
    if (task.last < job.blocks()) continue;
    job.partial(task.unit)[job.blocks()] = extras(job, task.group, scratch.g.data(), [&](int64_t column, int) {
      return StripRow{scratch.u.data() + column * kLanes, job.layer.columns() * kLanes};
    });
  }
}

// sum over the channels of one unit of the squares at one position
double squares(const Job& job, const LayerTensor& tensor, int64_t unit, int64_t channels, int64_t offset) {
  const int64_t sample = unit / job.layer.groups, channel = unit % job.layer.groups * channels,
                item_bytes = tensor.type == ScalarType::Float ? 4 : 2;
  const char* const x = tensor.data + (sample * tensor.sample + channel * tensor.channel + offset) * item_bytes;
  if (tensor.channel == 1) return job.loops.squares(x, tensor.type, channels);
  double sum = 0;
  for (int64_t c = 0; c < channels; ++c) sum += job.loops.squares(x + c * tensor.channel * item_bytes, tensor.type, 1);
  return sum;
}

// One position: |g|^2 |u|^2, read from where they lie.
void run_rows(const Job& job, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const double g = squares(job, job.layer.grad, unit, job.layer.outputs, job.grad_map.offset[0]);
    double u = 0;
    for (const PositionMap& map : job.x_maps)
      if (map.offset[0] != kPadding) u += squares(job, job.layer.x, unit, job.layer.channels, map.offset[0]);
    job.partial(unit)[0] = g * u;
    job.partial(unit)[1] = job.bias ? g : 0;
  }
}

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
  for_each_point(grad.size,
                 [&](const Triple& at) { offsets.push_back(at[0] * grad.stride[0] + at[1] * grad.stride[1] + at[2] * grad.stride[2]); });
  return make_map(std::move(offsets), step_of(grad.size, grad.stride, {1, 1, 1}));
}

// Calls visit(i) for each zero of n zeros and ones. Most are ones, so many are looked at together.
template <class Visit>
void for_each_zero(const LaneLoops& loops, const float* mask, int64_t n, const Visit& visit) {
  constexpr int64_t kLook = 4 * kLanes;
  for (int64_t i = 0; i < n; i += kLook) {
    const int64_t end = std::min(i + kLook, n);
    if (loops.all_ones(mask + i, end - i)) continue;
    for (int64_t l = i; l < end; ++l)
      if (mask[l] == 0) visit(l);
  }
}

// mask [O][taps * C] of one group, 0 or 1: what is cleared, by column.
void list_entries(GramJob& job, const float* mask) {
  const int64_t outputs = job.layer.outputs, columns = job.layer.columns();
  std::vector<Entry> found;
  std::vector<size_t> place(static_cast<size_t>(columns) + 1);  // first counts, then where the next entry of a column goes
  for (int64_t o = 0; o < outputs; ++o)
    for_each_zero(job.loops, mask + o * columns, columns, [&](int64_t k) {
      found.push_back({static_cast<int32_t>(o), static_cast<int32_t>(k)});
      ++place[k + 1];
    });
  place[0] = job.entries.size();
  for (int64_t k = 0; k < columns; ++k) place[k + 1] += place[k];
  job.entries.resize(place[columns]);
  for (const Entry entry : found) job.entries[place[entry.column]++] = entry;
  job.first_entry.push_back(job.entries.size());
}

void list_groups(GramJob& job, const float* mask) {
  job.first_entry = {0};
  for (int64_t group = 0; group < job.layer.groups; ++group) list_entries(job, mask + group * job.layer.outputs * job.layer.columns());
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

// Whether all there is to do is to square and add two rows per unit.
bool is_rows(const GramJob& job) { return job.grad_map.size() == 1 && job.first_entry.empty(); }

void run(const GramJob& job, int64_t begin, int64_t end) {
  if (is_rows(job))
    run_rows(job, begin, end);
  else if (job.plan)
    run_shifted(job, begin, end);
  else
    run_gram(job, begin, end);
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
  job.loops = lane_loops();
  job.bias = bias;
  if (mask) list_groups(job, data<const float>(*mask));
  const int64_t units = job.layer.samples * job.layer.groups;
  job.cuts = cut_blocks(job.blocks(), units);
  std::vector<double> partials(static_cast<size_t>(units * (job.blocks() + 1)));
  job.partials = partials.data();
  ShiftPlan plan;
  if (shifted && !is_rows(job)) {
    plan = make_shift_plan(job.layer, mask.has_value());
    job.plan = &plan;
  } else {
    for_each_point(job.layer.kernel, [&](const Triple& tap) { job.x_maps.push_back(tap_map(job.layer, tap)); });
  }
  const int64_t grain = is_rows(job) ? ceil_div(kChunk, job.layer.columns() + job.layer.outputs) : 1;
  if (job.blocks() > 0)
    torch::stable::parallel_for(0, units * job.segments(), grain, [&](int64_t begin, int64_t end) { run(job, begin, end); });
  add_partials(job, data<float>(sq_norm));
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("grad_sq_norm_gram", TORCH_BOX(&fastqat::grad_sq_norm_gram_cpu)); }
