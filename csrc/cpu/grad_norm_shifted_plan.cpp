// Where everything of the shifted Gram form lies; made once per call, the same for all samples.
#include <algorithm>
#include <map>

#include "grad_norm_shifted.h"

namespace fastqat {
namespace {

int64_t whole_blocks(int64_t n) { return ceil_div(n, kSide) * kSide; }

struct Grid {
  Triple size;
  int64_t cell(const Triple& at) const { return (at[0] * size[1] + at[1]) * size[2] + at[2]; }
};

// The pixel that each output position sees through each tap, [positions][taps], in its phase; -1 for padding.
using Pixels = std::vector<int32_t>;

Grid make_grid(const Layer& layer) {
  Grid grid{};
  for (int d = 0; d < kSpatial; ++d) grid.size[d] = layer.grad.size[d] + (layer.kernel[d] - 1) * layer.dilation[d] / layer.step[d];
  return grid;
}

// The pixels whose padded coordinates leave `remainder` when divided by the stride. number: of each cell, -1 without a pixel.
Phase make_phase(const Layer& layer, const Grid& grid, const Triple& remainder, std::vector<int32_t>& number) {
  std::vector<int64_t> offsets, cells;
  number.assign(product(grid.size), -1);
  for_each_point(grid.size, [&](const Triple& at) {
    int64_t offset = 0;
    for (int d = 0; d < kSpatial; ++d) {
      const int64_t i = at[d] * layer.step[d] + remainder[d] - layer.padding[d];
      if (i < 0 || i >= layer.x.size[d]) return;
      offset += i * layer.x.stride[d];
    }
    number[grid.cell(at)] = static_cast<int32_t>(offsets.size());
    offsets.push_back(offset);
    cells.push_back(grid.cell(at));
  });
  Phase phase{};
  phase.pixels = make_map(std::move(offsets), step_of(grid.size, layer.x.stride, layer.step));
  phase.cells = make_map(std::move(cells), 1, kSide);
  return phase;
}

// Taps, their phases, and what is seen through them.
Pixels plan_taps(ShiftPlan& plan, const Layer& layer, const Grid& grid) {
  std::map<Triple, int64_t> found;
  std::vector<std::vector<int32_t>> numbers;
  for_each_point(layer.kernel, [&](const Triple& tap) {
    Triple remainder, shift;
    for (int d = 0; d < kSpatial; ++d) {
      remainder[d] = tap[d] * layer.dilation[d] % layer.step[d];
      shift[d] = tap[d] * layer.dilation[d] / layer.step[d];
    }
    const auto [place, is_new] = found.insert({remainder, static_cast<int64_t>(plan.phases.size())});
    if (is_new) plan.phases.push_back(make_phase(layer, grid, remainder, numbers.emplace_back()));
    plan.taps.push_back({place->second, grid.cell(shift)});
  });
  Pixels pixels;
  for (int64_t cell : plan.cells.offset)
    for (const Tap& tap : plan.taps) pixels.push_back(numbers[tap.phase][cell + tap.shift]);
  return pixels;
}

// Which rows each block of output positions needs, and with that how many a phase keeps at a time.
void plan_rows(ShiftPlan& plan, const Pixels& pixels) {
  const int64_t blocks = ceil_div(plan.cells.size(), kSide), taps = static_cast<int64_t>(plan.taps.size());
  for (Phase& phase : plan.phases) {
    phase.ready.assign(blocks, 0);
    phase.oldest.assign(blocks, whole_blocks(phase.pixels.size()));
  }
  for (size_t i = 0; i < pixels.size(); ++i) {
    if (pixels[i] < 0) continue;
    Phase& phase = plan.phases[plan.taps[i % taps].phase];
    int64_t &ready = phase.ready[i / taps / kSide], &oldest = phase.oldest[i / taps / kSide];
    ready = std::max(ready, whole_blocks(pixels[i] + 1));
    oldest = std::min(oldest, pixels[i] / kSide * kSide);
  }
  for (Phase& phase : plan.phases) {
    for (int64_t b = 1; b < blocks; ++b) phase.ready[b] = std::max(phase.ready[b], phase.ready[b - 1]);
    for (int64_t b = blocks - 1; b > 0; --b) phase.oldest[b - 1] = std::min(phase.oldest[b - 1], phase.oldest[b]);
    for (int64_t b = 0; b < blocks; ++b) phase.capacity = std::max(phase.capacity, phase.ready[b] - phase.oldest[b]);
  }
}

void plan_memory(ShiftPlan& plan, int64_t channels) {
  for (Phase& phase : plan.phases) {
    phase.ring = plan.ring_floats;
    phase.strips = plan.strip_floats;
    plan.ring_floats += phase.capacity * plan.row;
    plan.strip_floats += phase.blocks() * kSide * channels;
  }
}

void plan_seen(ShiftPlan& plan, const Pixels& pixels) {
  const size_t taps = plan.taps.size();
  for (size_t i = 0; i < pixels.size(); ++i) {
    if (i % taps == 0) plan.first_seen.push_back(plan.seen.size());
    if (pixels[i] < 0) continue;
    const auto [phase, shift] = plan.taps[i % taps];
    const int64_t row = pixels[i] % plan.phases[phase].capacity * plan.row;
    plan.seen.push_back(plan.phases[phase].ring + row + kSlack + plan.cells.offset[i / taps] + shift + 1);
  }
  plan.first_seen.push_back(plan.seen.size());
}

// Position by position, where the packed pixels of channel 0 lie that tap k sees.
PositionMap gathered_by(const ShiftPlan& plan, const Pixels& pixels, size_t k, int64_t channels) {
  std::vector<int64_t> places;
  for (size_t i = k; i < pixels.size(); i += plan.taps.size())
    places.push_back(pixels[i] < 0 ? kPadding : pixels[i] / kLanes * channels * kLanes + pixels[i] % kLanes);
  return make_map(std::move(places), 1);
}

}  // namespace

ShiftPlan make_shift_plan(const Layer& layer, bool masked) {
  ShiftPlan plan{};
  const Grid grid = make_grid(layer);
  std::vector<int64_t> cells;
  for_each_point(layer.grad.size, [&](const Triple& at) { cells.push_back(grid.cell(at)); });
  plan.cells = make_map(std::move(cells), 1, kSide);
  plan.row = ceil_div(kSlack + product(grid.size), kLanes) * kLanes;
  const Pixels pixels = plan_taps(plan, layer, grid);
  plan_rows(plan, pixels);
  plan_memory(plan, layer.channels);
  plan_seen(plan, pixels);
  for (size_t k = 0; masked && k < plan.taps.size(); ++k) plan.gathered.push_back(gathered_by(plan, pixels, k, layer.channels));
  return plan;
}

}  // namespace fastqat
