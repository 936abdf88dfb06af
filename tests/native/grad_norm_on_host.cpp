// The CUDA kernels of the per-sample gradient norms behind C functions, run on the CPU by cuda_on_host/cuda_runtime.h.
#include <limits>

#include "cuda/grad_norm_launch.h"

using namespace fastqat;
using namespace fastqat::grad_norm;

namespace {

// Partials no kernel writes stay NaN, and show in the sums.
std::vector<float> room(int64_t size) { return std::vector<float>(size, std::numeric_limits<float>::quiet_NaN()); }

}  // namespace

extern "C" {

void set_backwards(bool backwards) { host::backwards = backwards; }

void direct(const Array* x, const Array* grad_y, const Geometry* geometry, Storage storage, bool bias, const float* mask,
            const float* slope, float* sq_norm, float* inner) {
  const Plan plan = make_plan(*x, *grad_y, *geometry, storage);
  const Room wanted = direct_room(plan, inner != nullptr);
  run_direct(plan, {mask, slope}, bias, room(wanted.sq_norm + wanted.inner).data(), sq_norm, inner, nullptr);
}

void gram(const Array* x, const Array* grad_y, const Geometry* geometry, Storage storage, bool bias, float* sq_norm) {
  const Plan plan = make_plan(*x, *grad_y, *geometry, storage);
  run_gram(plan, bias, room(gram_room(plan)).data(), sq_norm, nullptr);
}

// How x and grad_y are read, and the tile of the direct form: its rows and columns over all groups, its threads.
void chosen(const Array* x, const Array* grad_y, const Geometry* geometry, Storage storage, int64_t* found) {
  const Plan plan = make_plan(*x, *grad_y, *geometry, storage);
  found[0] = static_cast<int64_t>(plan.x.access);
  found[1] = static_cast<int64_t>(plan.grad_y.access);
  with_direct_tile(plan, [&](auto tile) {
    using Tile = typename decltype(tile)::type;
    found[2] = Tile::kGroups * Tile::kRows;
    found[3] = Tile::kGroups * Tile::kColumns;
  });
}
}
