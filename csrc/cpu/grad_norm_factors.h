// Mask and slope of the direct form: factors of the elements of a gradient, read by every sample.
#pragma once

#include <cstring>

#include "grad_norm_plan.h"

namespace fastqat {

using Lanes = float __attribute__((vector_size(4 * kLanes)));  // plain loops of kLanes in registers are not seen by the compiler here

FASTQAT_INLINE void load_lanes(const float* from, Lanes& out) { std::memcpy(&out, from, sizeof out); }

// The factors of `outputs` rows of the weight from `row` on, and of some vectors of columns, as the tiles of a task meet them:
// [vectors][outputs][kLanes], 0 behind the columns that count, 1 where there are no factors. In the rows of the weight, whose distance is
// often a multiple of a large power of two, they would push each other out of the cache.
inline void pack_factors(const Plan& plan, const float* factors, int64_t row, int64_t outputs, int64_t first, int64_t last, float* out) {
  const int64_t columns = plan.layer.columns();
  for (int64_t v = first; v < last; ++v) {
    const Vector vector = plan.vectors[static_cast<size_t>(v)];
    for (int64_t o = 0; o < outputs; ++o, out += kLanes) {
      const float* const from = factors ? factors + (row + o) * columns + vector.column : nullptr;
      for (int l = 0; l < kLanes; ++l) out[l] = l >= vector.lanes ? 0.0f : from ? from[l] : 1.0f;
    }
  }
}

// One vector of the rows of a tile: squares with the mask into `lanes`, products with the slope into inner [rows][kLanes]; mask and slope
// [rows][kLanes], the latter may be null.
FASTQAT_INLINE void add_factored(const float* tile, int rows, const float* mask, const float* slope, double* lanes, float* inner) {
  Lanes squares{}, g, factor, sum;
  for (int r = 0; r < rows; ++r) {
    load_lanes(tile + r * kTileColumns, g);
    load_lanes(mask + r * kLanes, factor);
    squares += (g * factor) * (g * factor);
    if (!slope) continue;
    load_lanes(slope + r * kLanes, factor);
    load_lanes(inner + r * kLanes, sum);
    sum += g * factor;
    std::memcpy(inner + r * kLanes, &sum, sizeof sum);
  }
  for (int l = 0; l < kLanes; ++l) lanes[l] += squares[l];
}

}  // namespace fastqat
