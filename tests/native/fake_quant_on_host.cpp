// The CUDA kernels of fake quantization behind C functions, run on the CPU by cuda_on_host/cuda_runtime.h.
#include <limits>

#include "cuda/fake_quant_batch.h"
#include "cuda/fake_quant_launch.h"

using namespace fastqat;

namespace {

// Partials no kernel writes stay NaN, and show in the sums.
void run_with_workspace(Items items, bool together) {
  std::vector<std::vector<double>> rooms;
  for (Item& item : items) {
    rooms.emplace_back(2 * item.plan.partials(), std::numeric_limits<double>::quiet_NaN());
    item.job.scale_sums = rooms.back().data();
    item.job.zero_point_sums = rooms.back().data() + item.plan.partials();
  }
  if (together) return run_backward_all(items, nullptr);
  for (const Item& item : items) run_backward(item.job, item.plan, nullptr);
}

Items items_of(int count, const Job* jobs, const View* views, const Storage* storages) {
  Items items;
  for (int i = 0; i < count; ++i) {
    const Plan plan = make_plan(views[i], storages[i]);
    items.push_back({with_access(jobs[i], plan), plan});
  }
  return items;
}

}  // namespace

extern "C" {

void set_backwards(bool backwards) { host::backwards = backwards; }

int64_t launches() { return host::launches; }

int64_t divide(int64_t n, int64_t d) { return Divider(d).divide(n); }

// The first element of the last piece and its scale, by the arithmetic of the kernels; the tensor itself is never touched.
void last_piece(const View* view, Storage storage, int64_t* found) {
  const Plan plan = make_plan(*view, storage);
  if (plan.by_columns) {
    const ColumnPiece p = column_piece(plan.columns, plan.columns.pieces - 1, 0, static_cast<int>(plan.vector()));
    found[0] = p.begin + (p.last - p.row - 1) / kDepth * kDepth * plan.columns.columns;
    found[1] = p.block * view->channels + p.column / view->inner % view->channels;
    found[2] = p.end;
  } else {
    const RowPiece p = row_piece(plan.rows, plan.rows.pieces - 1);
    found[0] = p.begin + (p.rows - 1) * p.stride;
    found[1] = p.scale;
    found[2] = found[0] + p.length;
  }
}

void forward(int count, const Job* jobs, const View* views, const Storage* storages, bool together) {
  const Items items = items_of(count, jobs, views, storages);
  if (together) return run_forward_all(items, nullptr);
  for (const Item& item : items) run_forward(item.job, item.plan, nullptr);
}

void codes(int count, const Job* jobs, const View* views, const Storage* storages, bool) {
  for (const Item& item : items_of(count, jobs, views, storages)) run_codes(item.job, item.plan, nullptr);
}

void backward(int count, const Job* jobs, const View* views, const Storage* storages, bool together) {
  run_with_workspace(items_of(count, jobs, views, storages), together);
}
}
