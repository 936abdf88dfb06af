// Launches for one tensor. Nothing here waits for the device.
#pragma once

#include "fake_quant_plan.h"
#include "launch.h"

namespace fastqat {

template <class Block>
__global__ void __launch_bounds__(kThreads, 2)
    fake_quant_kernel(const __grid_constant__ Job job, const __grid_constant__ typename Block::Cut cut) {
  Block::run(job, cut, blockIdx.x);
}

template <class Block>
void launch_one(const Job& job, const Plan& plan, cudaStream_t stream) {
  typename Block::Cut cut;
  get_cut(plan, cut);
  launch(fake_quant_kernel<Block>, plan.blocks(), kThreads, stream, job, cut);
}

inline void run_forward(const Job& job, const Plan& plan, cudaStream_t stream) {
  if (plan.view.numel() == 0) return;
  with_map<Forward>(job, plan, [&](auto block) { launch_one<typename decltype(block)::type>(job, plan, stream); });
}

inline void run_codes(const Job& job, const Plan& plan, cudaStream_t stream) {
  if (plan.view.numel() == 0) return;
  with_map<Codes>(job, plan, [&](auto block) { launch_one<typename decltype(block)::type>(job, plan, stream); });
}

// job.scale_sums and job.zero_point_sums have room for plan.partials() each, where their sums are wanted and job.whole is not set.
inline void run_backward(const Job& job, const Plan& plan, cudaStream_t stream) {
  if (plan.view.numel() > 0) with_backward(job, plan, [&](auto block) { launch_one<typename decltype(block)::type>(job, plan, stream); });
  if (!needs_finish(job, plan)) return;
  const Partials cut = finishing(plan);
  launch(fake_quant_kernel<FinishSums>, blocks_of(cut), kThreads, stream, job, cut);
}

}  // namespace fastqat
