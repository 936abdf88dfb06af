// Fake quantization of many tensors at the CUDA key: one launch for all of a kind (dtype, semantics, rows or columns), one more for the
// sums of all. Each tensor has the cut it has alone, so that every result has the bits of a call for that tensor alone.
#include <torch/csrc/stable/library.h>

#include <initializer_list>

#include "fake_quant_batch.h"
#include "fake_quant_tensors.h"

namespace fastqat {
namespace {

using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;

constexpr size_t kNumbers = 7;  // blocks, outer, channels, inner, qmin, qmax, reciprocal of a tensor

void check_lists(const Tensors& xs, std::initializer_list<size_t> others, const std::vector<int64_t>& numbers) {
  bool same = numbers.size() == kNumbers * xs.size();
  for (const size_t other : others) same = same && other == xs.size();
  STD_TORCH_CHECK(same, "fake_quant_all: every list must have one entry per tensor, `numbers` ", kNumbers, "; there are ", xs.size(),
                  " tensors");
  for (const Tensor& x : xs)
    STD_TORCH_CHECK(x.get_device_index() == xs[0].get_device_index(), "fake_quant_all: all tensors must be on one device");
}

void fake_quant_all_cuda(Tensors xs, Tensors scales, OptionalTensors zero_points, Tensors x_hats, std::vector<int64_t> numbers) {
  check_lists(xs, {scales.size(), zero_points.size(), x_hats.size()}, numbers);
  if (xs.empty()) return;
  Items items;
  for (size_t i = 0; i < xs.size(); ++i) {
    const int64_t* const n = numbers.data() + kNumbers * i;
    const View view{n[0], n[1], n[2], n[3]};
    STD_TORCH_CHECK(x_hats[i].scalar_type() == xs[i].scalar_type(), "fake_quant_all: output ", i, " must have the dtype of its x");
    const Plan plan = make_plan(view, storage_of(xs[i]));
    items.push_back({with_access(make_job(xs[i], scales[i], zero_points[i], x_hats[i], view, n[4], n[5], n[6] != 0), plan), plan});
  }
  const DeviceGuard guard(xs[0].get_device_index());
  run_forward_all(items, current_stream(xs[0]));
}

void fake_quant_all_backward_cuda(Tensors xs, Tensors scales, OptionalTensors zero_points, Tensors grad_ys, Tensors grad_xs,
                                  OptionalTensors grad_scales, OptionalTensors grad_zero_points, std::vector<int64_t> numbers,
                                  std::vector<double> grad_factors) {
  check_lists(
      xs,
      {scales.size(), zero_points.size(), grad_ys.size(), grad_xs.size(), grad_scales.size(), grad_zero_points.size(), grad_factors.size()},
      numbers);
  if (xs.empty()) return;
  Items items;
  int64_t doubles = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    const int64_t* const n = numbers.data() + kNumbers * i;
    const auto [job, plan] = make_backward(xs[i], scales[i], zero_points[i], grad_ys[i], grad_xs[i], grad_scales[i], grad_zero_points[i],
                                           {n[0], n[1], n[2], n[3]}, n[4], n[5], n[6] != 0, grad_factors[i]);
    items.push_back({job, plan});
    doubles += workspace_size(job, plan);
  }
  const DeviceGuard guard(xs[0].get_device_index());
  const Tensor sums = workspace(xs[0], doubles);
  double* room = static_cast<double*>(sums.data_ptr());
  for (Item& item : items) room = take_workspace(item.job, item.plan, room);
  run_backward_all(items, current_stream(xs[0]));
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CUDA, m) {
  m.impl("fake_quant_all", TORCH_BOX(&fastqat::fake_quant_all_cuda));
  m.impl("fake_quant_all_backward", TORCH_BOX(&fastqat::fake_quant_all_backward_cuda));
}
