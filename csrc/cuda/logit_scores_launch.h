// Launches for the scores of logits: how many threads work on a row, and whether they hold it.
#pragma once

#include "divider.h"
#include "launch.h"
#include "logit_scores_kernels.h"

namespace fastqat::logits {

template <bool kSoft>
using Held = Way<256, kSoft ? 2 : 4, true, kSoft>;
template <bool kSoft>
using Wide = Way<512, 1, false, kSoft>;

template <class Way>
constexpr int64_t kTileClasses = int64_t{Way::kThreads} * Way::kChunks * kChunk;

template <class Way>
void launch_way(Job job, cudaStream_t stream) {
  job.shift = shift_of(job.classes, int64_t{32} * Way::kChunks * kChunk, Way::kThreads);
  launch_blocks(scores_kernel<Way>, divide_up(job.rows, Way::kThreads >> job.shift), Way::kThreads, stream, job);
}

template <bool kSoft>
void launch_rows(const Job& job, cudaStream_t stream) {
  if (job.classes <= kTileClasses<Held<kSoft>>)
    launch_way<Held<kSoft>>(job, stream);
  else
    launch_way<Wide<kSoft>>(job, stream);
}

inline void run(const Job& job, cudaStream_t stream) {
  by_flag(job.soft.data != nullptr, [&](auto soft) { launch_rows<soft()>(job, stream); });
}

}  // namespace fastqat::logits
