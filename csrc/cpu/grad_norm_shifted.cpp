// The loops of the shifted Gram form. The rows of the pixels' Gram matrix live in a ring per phase, spread over the cells of the grid,
// only as long as an output position still needs them; output positions follow at most one block behind.
#include "grad_norm_shifted.h"

#include <algorithm>

namespace fastqat {
namespace {

using Job = GramJob;

struct Scratch {
  explicit Scratch(const Job& job)
      : ring(job.plan->ring_floats),
        pixels(job.plan->strip_floats),
        grad(job.strips() * job.layer.outputs * kLanes),
        rows(kSide * job.plan->row),
        tile(kSide * kSide),
        columns(job.first_entry.empty() ? 0 : kLanes * job.strips() * kLanes),
        made(job.plan->phases.size()) {}
  Buffer ring, pixels, grad, rows, tile, columns;
  std::vector<int64_t> made;  // per phase: rows of the pixels' Gram matrix so far
};

// Rows of a tile, its columns those of block `block`, to the cells of as many rows from `row` on.
void spread(const Job& job, const float* tile, int64_t rows, const PositionMap& cells, int64_t block, float* row) {
  for (size_t r = cells.first[block]; r < cells.first[block + 1]; ++r) {
    const Run run = cells.runs[r];
    job.loops.copy_rows(tile + run.lane, kSide, row + kSlack + run.from, job.plan->row, rows, run.length);
  }
}

void pack_pixels(const Job& job, const Segment& task, const Phase& phase, int64_t block, const Scratch& s) {
  pack_block(job, task, job.layer.x, job.layer.channels, phase.pixels, block, job.layer.channels * kLanes, s.pixels.data() + phase.strips);
}

// kSide rows of the pixels' Gram matrix, up to the diagonal.
void make_pixel_rows(const Job& job, const Phase& phase, int64_t block, const Scratch& s) {
  const int64_t channels = job.layer.channels, rows = side_of(phase.pixels.size(), block), floats = kSide * channels;
  const float* const strips = s.pixels.data() + phase.strips;
  float* const ring = s.ring.data() + phase.ring;
  const int64_t first = block * kSide % phase.capacity, before_wrap = std::min(rows, phase.capacity - first);
  for (int64_t b = 0; b <= block; ++b) {
    gram_tile(job.kernel, channels, strips + block * floats, rows, strips + b * floats, b == block, s.tile.data());
    spread(job, s.tile.data(), before_wrap, phase.cells, b, ring + first * job.plan->row);
    spread(job, s.tile.data() + before_wrap * kSide, rows - before_wrap, phase.cells, b, ring);
  }
}

// kSide rows of the Gram matrix of grad_y, up to the diagonal, of which half is kept: every other pair counts twice.
void make_grad_rows(const Job& job, int64_t block, const Scratch& s) {
  const int64_t outputs = job.layer.outputs, rows = side_of(job.grad_map.size(), block), floats = kSide * outputs;
  const float* const strips = s.grad.data();
  float* const tile = s.tile.data();
  for (int64_t b = 0; b <= block; ++b) {
    gram_tile(job.kernel, outputs, strips + block * floats, rows, strips + b * floats, b == block, tile);
    for (int64_t r = 0; b == block && r < rows; ++r) tile[r * kSide + r] *= 0.5f;
    spread(job, tile, rows, job.plan->cells, b, s.rows.data());
  }
}

// Pairs of this block's output positions with all up to themselves.
double block_sum(const Job& job, int64_t block, const Scratch& s) {
  const ShiftPlan& plan = *job.plan;
  double sum = 0;
  for (int64_t r = 0; r < side_of(job.grad_map.size(), block); ++r) {
    const int64_t t = block * kSide + r, cells = plan.cells.offset[t] + 1;
    const auto taps = static_cast<int64_t>(plan.first_seen[t + 1] - plan.first_seen[t]);
    const float* const grad = s.rows.data() + r * plan.row + kSlack + cells;
    sum += job.loops.shifted_dot(grad, s.ring.data(), plan.seen.data() + plan.first_seen[t], taps, cells);
  }
  return 2 * sum;
}

// The positions of one column of u, from the packed pixels, at one of kLanes places.
StripRow gather_column(const Job& job, int64_t column, int place, const Scratch& s) {
  const int64_t tap = column / job.layer.channels;
  const PositionMap& places = job.plan->gathered[tap];
  const float* const from = s.pixels.data() + job.plan->phases[job.plan->taps[tap].phase].strips + column % job.layer.channels * kLanes;
  float* const to = s.columns.data() + place * job.strips() * kLanes;
  std::fill_n(to, places.strips() * kLanes, 0.0f);
  for (int64_t strip = 0; strip < places.strips(); ++strip)
    for (size_t r = places.first[strip]; r < places.first[strip + 1]; ++r)
      copy_run(from + places.runs[r].from, places.runs[r].length, to + strip * kLanes + places.runs[r].lane);
  return {to, kLanes};
}

void start_segment(const Job& job, const Segment& task, Scratch& s) {
  for (int64_t block = 0; block < task.first; ++block) pack_grad(job, task, block, s.grad.data());
  for (size_t p = 0; p < s.made.size(); ++p) {
    const Phase& phase = job.plan->phases[p];
    s.made[p] = phase.oldest[task.first];
    for (int64_t block = 0; block < s.made[p] / kSide; ++block) pack_pixels(job, task, phase, block, s);
  }
}

void shifted_task(const Job& job, const Segment& task, Scratch& s) {
  start_segment(job, task, s);
  for (int64_t block = task.first; block < task.last; ++block) {
    for (size_t p = 0; p < s.made.size(); ++p) {
      const Phase& phase = job.plan->phases[p];
      for (; s.made[p] < phase.ready[block]; s.made[p] += kSide) {
        pack_pixels(job, task, phase, s.made[p] / kSide, s);
        make_pixel_rows(job, phase, s.made[p] / kSide, s);
      }
    }
    pack_grad(job, task, block, s.grad.data());
    make_grad_rows(job, block, s);
    job.partial(task.unit)[block] = block_sum(job, block, s);
  }
  if (task.last == job.blocks())
    job.partial(task.unit)[job.blocks()] =
        extras(job, task.group, s.grad.data(), [&](int64_t column, int place) { return gather_column(job, column, place, s); });
}

}  // namespace

void run_shifted(const GramJob& job, int64_t begin, int64_t end) {
  Scratch scratch(job);
  for (int64_t i = begin; i < end; ++i) shifted_task(job, segment_of(job, i), scratch);
}

}  // namespace fastqat
