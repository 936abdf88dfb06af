// Sums of products in kLanes lanes, written once and compiled for the vectors of each instruction set. All sets give the same bits: equal
// lanes, no fused operations, the same order when lanes are added up, in fp64.
#pragma once

#include "../common.h"
#include "grad_norm_pack.h"

namespace fastqat {

struct LaneLoops {
  // sum of a * b over `rows` rows of `vectors` (at most 3) times kLanes floats
  double (*dot)(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t rows, int vectors);
  // sum over `rows` rows of kLanes floats
  double (*sum)(const float* a, int64_t a_row, int64_t rows);
  // sum over `count` (at most kLanes) pairs of (sum over `strips` vectors of kLanes floats of a * b)^2
  double (*squared_dots)(const float* const* a, int64_t a_strip, const float* const* b, int64_t b_strip, int64_t strips, int count,
                         Transpose transpose);
  // whether all of x is one
  bool (*all_ones)(const float* x, int64_t n);
  // rows of `length` floats
  void (*copy_rows)(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows, int64_t length);
  // sum of x^2 over n neighbours
  double (*squares)(const void* x, ScalarType type, int64_t n);
  // sum over the `cells` floats before `grad` of grad * (sum over k of what lies before ring + seen[k]), in whole vectors: reads up to
  // 4 * kLanes - 1 floats more, before both
  double (*shifted_dot)(const float* grad, const float* ring, const int64_t* seen, int64_t taps, int64_t cells);
};

// Those of the current instruction-set level.
const LaneLoops& lane_loops();

}  // namespace fastqat
