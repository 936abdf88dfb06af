// The shifted Gram form: x_{t+k} . x_{t'+k} is an element of the Gram matrix of pixels, so that this matrix, over C channels only, is
// made once, and u_t . u_t' is the sum of `taps` of its elements.
//
// All positions live on one grid of cells, in which every tap is a constant shift: the output position t has the cell t, and tap k sees
// the cell t + k * dilation / stride. With a stride, pixels whose padded coordinates differ modulo it never meet: each remainder is a
// phase of its own, with a grid of the same size. Cells without a pixel are padding and stay zero.
#pragma once

#include "grad_norm_gram.h"

namespace fastqat {

// Before a row of cells, zero: loops go from its end to its start in steps of up to this much, and may run past it.
constexpr int64_t kSlack = 4 * kLanes;

struct Phase {
  PositionMap pixels;           // of x, in the order of their cells
  PositionMap cells;            // their cells
  std::vector<int64_t> ready;   // [blocks]: rows of the pixels' Gram matrix that outputs up to this block's need, in whole blocks
  std::vector<int64_t> oldest;  // [blocks]: the first row that outputs from this block on need, likewise
  int64_t capacity;             // rows in the ring
  int64_t ring, strips;         // where its rows and its packed pixels lie in the buffers

  int64_t blocks() const { return ceil_div(pixels.size(), kSide); }
};

struct Tap {
  int64_t phase, shift;  // in cells
};

struct ShiftPlan {
  std::vector<Phase> phases;
  std::vector<Tap> taps;
  PositionMap cells;                  // of the output positions
  std::vector<int64_t> seen;          // of every output position, through the taps that see a pixel: the end of the ring's row up to it
  std::vector<size_t> first_seen;     // [positions + 1]
  std::vector<PositionMap> gathered;  // [taps]: where a channel's packed pixels lie, position by position; with a mask only
  int64_t row;                        // floats of one row of cells
  int64_t ring_floats, strip_floats;
};

ShiftPlan make_shift_plan(const Layer& layer, bool masked);

// The tasks [begin, end) of a job with a plan.
void run_shifted(const GramJob& job, int64_t begin, int64_t end);

}  // namespace fastqat
