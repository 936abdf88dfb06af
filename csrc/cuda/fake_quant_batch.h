// Launches for many tensors: one for all of a kind. Nothing here waits for the device.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "fake_quant_plan.h"
#include "launch.h"

namespace fastqat {

// As many tensors as fit into the arguments of a kernel: a table there needs no copy to the device, so that a graph captures it too.
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr int kBatch = 15;  // 4 KiB
#else
constexpr int kBatch = 96;  // 32 KiB
#endif

template <class Cut>
struct Batch {
  int count = 0;
  int64_t blocks = 0;
  int64_t first[kBatch];  // block of each tensor
  Job jobs[kBatch];
  Cut cuts[kBatch];
};

template <class Block>
__global__ void __launch_bounds__(kThreads, 2) fake_quant_all_kernel(const __grid_constant__ Batch<typename Block::Cut> batch) {
  const int64_t block = blockIdx.x;
  int low = 0, high = batch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first[middle] <= block ? low : high) = middle;
  }
  Block::run(batch.jobs[low], batch.cuts[low], block - batch.first[low]);
}

// Tensors are added until the table is full, then launched; the rest when it is told to.
template <class Block>
class Batches {
 public:
  explicit Batches(cudaStream_t stream) : stream_(stream) {}

  void add(const Job& job, const typename Block::Cut& cut, int64_t blocks) {
    if (batch_.count == kBatch || batch_.blocks + blocks > INT32_MAX) flush();
    batch_.first[batch_.count] = batch_.blocks;
    batch_.jobs[batch_.count] = job;
    batch_.cuts[batch_.count++] = cut;
    batch_.blocks += blocks;
  }
  void flush() {
    if (batch_.count > 0) launch(fake_quant_all_kernel<Block>, batch_.blocks, kThreads, stream_, batch_);
    batch_.count = 0;
    batch_.blocks = 0;
  }

 private:
  cudaStream_t stream_;
  Batch<typename Block::Cut> batch_;
};

struct Item {
  Job job;
  Plan plan;
};
using Items = std::vector<Item>;

// What decides on the code that an item needs.
inline auto kind(const Item& item) {
  return std::make_tuple(item.plan.storage, item.plan.by_columns, item.job.reciprocal, item.job.aligned, item.job.zero_point != nullptr);
}

template <class Block>
void launch_same(Items::const_iterator item, Items::const_iterator end, cudaStream_t stream) {
  Batches<Block> batches(stream);
  for (; item != end; ++item) {
    typename Block::Cut cut;
    get_cut(item->plan, cut);
    batches.add(item->job, cut, item->plan.blocks());
  }
  batches.flush();
}

// with(job, plan, start) calls start with the blocks for a kind, as with_map and with_backward do.
template <class With>
void launch_kinds(Items items, cudaStream_t stream, const With& with) {
  items.erase(std::remove_if(items.begin(), items.end(), [](const Item& i) { return i.plan.view.numel() == 0; }), items.end());
  while (!items.empty()) {
    const Item last = items.back();
    const auto same = std::stable_partition(items.begin(), items.end(), [&](const Item& i) { return kind(i) != kind(last); });
    with(last.job, last.plan, [&](auto block) { launch_same<typename decltype(block)::type>(same, items.end(), stream); });
    items.erase(same, items.end());
  }
}

inline void run_forward_all(const Items& items, cudaStream_t stream) {
  launch_kinds(items, stream, [](const Job& job, const Plan& plan, const auto& start) { with_map<Forward>(job, plan, start); });
}

inline void run_backward_all(const Items& items, cudaStream_t stream) {
  launch_kinds(items, stream, [](const Job& job, const Plan& plan, const auto& start) { with_backward(job, plan, start); });
  Batches<FinishSums> finish(stream);
  for (const Item& item : items)
    if (needs_finish(item.job, item.plan)) finish.add(item.job, finishing(item.plan), blocks_of(finishing(item.plan)));
  finish.flush();
}

}  // namespace fastqat
