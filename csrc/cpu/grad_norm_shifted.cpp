// The loops of the shifted Gram form. The rows of the pixels' Gram matrix live in a ring per phase, spread over the cells of the grid,
// only as long as an output position still needs them; output positions follow at most one block behind.
#include "grad_norm_shifted.h"

#include <algorithm>

#include "levels.h"

namespace fastqat {
namespace {

using Job = GramJob;

// kLanes floats at any address, one register or several.
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

FASTQAT_INLINE const Lanes& lanes_at(const float* p) { return *reinterpret_cast<const Lanes*>(p); }

struct Scratch {
  explicit Scratch(const Job& job)
      : ring(job.plan->ring_floats),
        pixels(job.plan->strip_floats),
        grad(job.strips() * job.layer.outputs * kLanes),
        rows(kSide * job.plan->row),
        tile(kSide * kSide),
        column(job.first_entry.empty() ? 0 : job.strips() * kLanes),
        made(job.plan->phases.size()) {}
  Buffer ring, pixels, grad, rows, tile, column;
  std::vector<int64_t> made;  // per phase: rows of the pixels' Gram matrix so far
};

// One row of a tile, its columns those of block `block`, to the cells of a row.
FASTQAT_INLINE void spread(const float* tile_row, const PositionMap& cells, int64_t block, float* row) {
  const int64_t end = std::min((block + 1) * kTileVectors, cells.strips());
  for (int64_t s = block * kTileVectors; s < end; ++s, tile_row += kLanes)
    for (size_t r = cells.first[s]; r < cells.first[s + 1]; ++r) {
      const Run run = cells.runs[r];
      copy_run(tile_row + run.lane, run.length, row + kSlack + run.from);
    }
}

FASTQAT_INLINE void pack_pixels(const Job& job, const Segment& task, const Phase& phase, int64_t block, const Scratch& s) {
  pack_block(job, task, job.layer.x, job.layer.channels, phase.pixels, block, job.layer.channels * kLanes, s.pixels.data() + phase.strips);
}

// kSide rows of the pixels' Gram matrix, up to the diagonal.
FASTQAT_INLINE void make_pixel_rows(const Job& job, const Phase& phase, int64_t block, const Scratch& s) {
  const int64_t channels = job.layer.channels, rows = side_of(phase.pixels.size(), block), floats = kSide * channels;
  const float* const strips = s.pixels.data() + phase.strips;
  const int64_t first = block * kSide % phase.capacity;
  for (int64_t b = 0; b <= block; ++b) {
    gram_tile(job.kernel, channels, strips + block * floats, rows, strips + b * floats, b == block, s.tile.data());
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first + r < phase.capacity ? first + r : first + r - phase.capacity;
      spread(s.tile.data() + r * kSide, phase.cells, b, s.ring.data() + phase.ring + row * job.plan->row);
    }
  }
}

// kSide rows of the Gram matrix of grad_y, up to the diagonal.
FASTQAT_INLINE void make_grad_rows(const Job& job, int64_t block, const Scratch& s) {
  const int64_t outputs = job.layer.outputs, rows = side_of(job.grad_map.size(), block), floats = kSide * outputs;
  const float* const strips = s.grad.data();
  for (int64_t b = 0; b <= block; ++b) {
    gram_tile(job.kernel, outputs, strips + block * floats, rows, strips + b * floats, b == block, s.tile.data());
    for (int64_t r = 0; r < rows; ++r) spread(s.tile.data() + r * kSide, job.plan->cells, b, s.rows.data() + r * job.plan->row);
  }
}

// The V vectors of kLanes cells before the ends `grad` and `ring + seen[k]`.
template <int V>
FASTQAT_INLINE void add_cells(const float* grad, const float* ring, const int64_t* seen, int64_t taps, Lanes& total) {
  Lanes sums[V] = {};
  for (int64_t k = 0; k < taps; ++k)
    for (int v = 0; v < V; ++v) sums[v] += lanes_at(ring + seen[k] - (v + 1) * kLanes);
  for (int v = 0; v < V; ++v) total += sums[v] * lanes_at(grad - (v + 1) * kLanes);
}

// sum over `cells` cells, the last of which is the row's own, of grad * (sum over taps of pixels): twice, but the own one, the diagonal.
FASTQAT_INLINE double pair_sum(const float* grad, const float* ring, const int64_t* seen, int64_t taps, int64_t cells) {
  float own = 0;
  for (int64_t k = 0; k < taps; ++k) own += ring[seen[k] - 1];
  const double diagonal = static_cast<double>(own) * grad[-1];
  Lanes total = {};
  for (; cells > 2 * kLanes; cells -= 4 * kLanes, grad -= 4 * kLanes, ring -= 4 * kLanes) add_cells<4>(grad, ring, seen, taps, total);
  if (cells > kLanes)
    add_cells<2>(grad, ring, seen, taps, total);
  else if (cells > 0)
    add_cells<1>(grad, ring, seen, taps, total);
  double twice = 0;
  for (int l = 0; l < kLanes; ++l) twice += total[l];
  return 2 * twice - diagonal;
}

FASTQAT_INLINE double block_sum(const Job& job, int64_t block, const Scratch& s) {
  const ShiftPlan& plan = *job.plan;
  double sum = 0;
  for (int64_t r = 0; r < side_of(job.grad_map.size(), block); ++r) {
    const int64_t t = block * kSide + r, cells = plan.cells.offset[t] + 1;
    const size_t first = plan.first_seen[t], taps = plan.first_seen[t + 1] - first;
    if (taps > 0) sum += pair_sum(s.rows.data() + r * plan.row + kSlack + cells, s.ring.data(), plan.seen.data() + first, taps, cells);
  }
  return sum;
}

// The positions of one column of u, from the packed pixels.
FASTQAT_INLINE StripRow gather_column(const Job& job, int64_t column, const Scratch& s) {
  const int64_t tap = column / job.layer.channels;
  const PositionMap& places = job.plan->gathered[tap];
  const float* const from = s.pixels.data() + job.plan->phases[job.plan->taps[tap].phase].strips + column % job.layer.channels * kLanes;
  std::fill_n(s.column.data(), places.strips() * kLanes, 0.0f);
  for (int64_t strip = 0; strip < places.strips(); ++strip)
    for (size_t r = places.first[strip]; r < places.first[strip + 1]; ++r)
      copy_run(from + places.runs[r].from, places.runs[r].length, s.column.data() + strip * kLanes + places.runs[r].lane);
  return {s.column.data(), kLanes};
}

FASTQAT_INLINE double extras(const Job& job, const Segment& task, const Scratch& s) {
  const double norm = job.bias ? bias_norm(s.grad.data(), job.layer.outputs, job.grad_map.strips()) : 0;
  if (job.first_entry.empty()) return norm;
  return norm - cleared_norm(job, task.group, s.grad.data(), [&](int64_t column) { return gather_column(job, column, s); });
}

FASTQAT_INLINE void start_segment(const Job& job, const Segment& task, Scratch& s) {
  for (int64_t block = 0; block < task.first; ++block) pack_grad(job, task, block, s.grad.data());
  for (size_t p = 0; p < s.made.size(); ++p) {
    const Phase& phase = job.plan->phases[p];
    s.made[p] = phase.oldest[task.first];
    for (int64_t block = 0; block < s.made[p] / kSide; ++block) pack_pixels(job, task, phase, block, s);
  }
}

FASTQAT_INLINE void shifted_task(const Job& job, const Segment& task, Scratch& s) {
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
  if (task.last == job.blocks()) job.partial(task.unit)[job.blocks()] = extras(job, task, s);
}

FASTQAT_INLINE void shifted_tasks(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch(job);
  for (int64_t i = begin; i < end; ++i) shifted_task(job, segment_of(job, i), scratch);
}

FASTQAT_LEVELS(shifted_tasks)

}  // namespace

void run_shifted(const GramJob& job, int64_t begin, int64_t end) { FASTQAT_AT_LEVEL(shifted_tasks)(job, begin, end); }

}  // namespace fastqat
