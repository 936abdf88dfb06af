// Launches of the per-sample gradient norms: one for the partials, one for their sums. Nothing here waits for the device.
#pragma once

#include "finish.h"
#include "grad_norm_plan.h"

namespace fastqat::grad_norm {

// Floats that a call needs for its partials: those of sq_norm, then those of inner.
struct Room {
  int64_t sq_norm, inner;
};

inline Room direct_room(const Plan& plan, bool inner) {
  Room room{};
  if (plan.empty()) return room;
  with_direct_tile(plan, [&](auto tile) {
    const DirectCut cut = cut_direct<typename decltype(tile)::type>(plan);
    room = {cut.blocks, inner ? plan.samples * plan.outputs * cut.column_tiles.d : 0};
  });
  return room;
}

struct Weights {
  const float* mask;   // [outputs, columns of x], or null
  const float* slope;  // the same
};

// sq_norm [samples] and, with a slope, inner [samples, outputs]; `partials` has room for what direct_room says.
inline void run_direct(const Plan& plan, const Weights& weights, bool bias, float* partials, float* sq_norm, float* inner,
                       cudaStream_t stream) {
  const Room room = direct_room(plan, inner != nullptr);
  if (!plan.empty()) {
    const bool fours = plan.x.columns % 4 == 0 && on_boundary(weights.mask) && on_boundary(weights.slope);
    const DirectJob job{plan.grad_y,   plan.x,   plan.positions,          plan.groups, weights.mask,
                        weights.slope, partials, partials + room.sq_norm, bias,        fours};
    by_storage(plan.storage, [&](auto in) {
      with_direct_tile(plan, [&](auto tile) {
        using Tile = typename decltype(tile)::type;
        const DirectCut cut = cut_direct<Tile>(plan);
        launch_blocks(direct_kernel<typename decltype(in)::type, Tile>, cut.blocks, Tile::kThreads, stream, job, cut);
      });
    });
  }
  finish(partials, sq_norm, plan.samples, room.sq_norm, 0.0f, stream);
  if (inner != nullptr) finish(partials + room.sq_norm, inner, plan.samples * plan.outputs, room.inner, -INFINITY, stream);
}

inline int64_t gram_room(const Plan& plan) {
  if (plan.empty()) return 0;
  if (plan.positions.count == 1) return plan.samples * plan.groups;
  int64_t blocks = 0;
  with_gram_tile(plan, [&](auto tile) { blocks = cut_gram<typename decltype(tile)::type>(plan).blocks; });
  return blocks;
}

// sq_norm [samples]; `partials` has room for gram_room.
inline void run_gram(const Plan& plan, bool bias, float* partials, float* sq_norm, cudaStream_t stream) {
  const int64_t room = gram_room(plan);
  const GramJob job{plan.grad_y, plan.x, plan.positions, partials, bias};
  if (room > 0)
    by_storage(plan.storage, [&](auto in) {
      using T = typename decltype(in)::type;
      if (plan.positions.count == 1)
        return launch_blocks(rows_kernel<T>, divide_up(room, kRowThreads / 32), kRowThreads, stream, job, Divider(plan.groups), room);
      with_gram_tile(plan, [&](auto tile) {
        using Tile = typename decltype(tile)::type;
        const GramCut cut = cut_gram<Tile>(plan);
        launch_blocks(gram_kernel<T, Tile>, cut.blocks, Tile::kThreads, stream, job, cut);
      });
    });
  finish(partials, sq_norm, plan.samples, room, 0.0f, stream);
}

}  // namespace fastqat::grad_norm
