// Per-sample gradient norms of linear layers and convolutions at the CUDA key: reads tensors into a plan and launches on torch's current
// stream. Arguments are as csrc/library.cpp says; the shifted form is not offered here, and masks go to the direct form.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "grad_norm_launch.h"
#include "tensors.h"

namespace fastqat::grad_norm {
namespace {

constexpr size_t kNumbers = 13;  // groups, then kernel, stride, padding and dilation

Geometry geometry_of(const std::vector<int64_t>& n) {
  STD_TORCH_CHECK(n.size() == kNumbers && n[0] > 0, "grad_sq_norm: numbers must be the ", kNumbers,
                  " of a geometry, with one group or more");
  return {n[0], {n[1], n[2], n[3]}, {n[4], n[5], n[6]}, {n[7], n[8], n[9]}, {n[10], n[11], n[12]}};
}

Array array_of(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 5, "grad_sq_norm: x and grad_y must have 5 dimensions, not ", t.dim());
  Array a{t.data_ptr(), {}, {}};
  for (int i = 0; i < 5; ++i) {
    a.size[i] = t.size(i);
    a.stride[i] = t.stride(i);
  }
  return a;
}

Plan plan_of(const Tensor& x, const Tensor& grad_y, const std::vector<int64_t>& numbers) {
  const Geometry geometry = geometry_of(numbers);
  const Array in = array_of(x), out = array_of(grad_y);
  STD_TORCH_CHECK(fits(grad_y, x.scalar_type(), grad_y.numel(), x) && in.size[0] == out.size[0],
                  "grad_sq_norm: grad_y must have the dtype, device and batch of x");
  STD_TORCH_CHECK(in.size[1] % geometry.groups == 0 && out.size[1] % geometry.groups == 0, "grad_sq_norm: ", geometry.groups,
                  " groups must divide the ", in.size[1], " channels of x and the ", out.size[1], " of grad_y");
  return make_plan(in, out, geometry, storage_of(x));
}

void grad_sq_norm_direct_cuda(Tensor x, Tensor grad_y, std::optional<Tensor> mask, std::optional<Tensor> slope, Tensor sq_norm,
                              std::optional<Tensor> inner, std::vector<int64_t> numbers, bool bias) {
  const Plan plan = plan_of(x, grad_y, numbers);
  const int64_t weights = plan.outputs * plan.x.columns;
  STD_TORCH_CHECK(fits(mask, ScalarType::Float, weights, x) && fits(slope, ScalarType::Float, weights, x),
                  "grad_sq_norm: mask and slope must be float32 with ", weights, " elements on the device of x");
  STD_TORCH_CHECK(fits(sq_norm, ScalarType::Float, plan.samples, x) && fits(inner, ScalarType::Float, plan.samples * plan.outputs, x),
                  "grad_sq_norm: sq_norm and inner must be float32, [N] and [N, O], on the device of x");
  STD_TORCH_CHECK(inner.has_value() == slope.has_value(), "grad_sq_norm: inner and slope come together");
  const DeviceGuard guard(x.get_device_index());
  const Room room = direct_room(plan, inner.has_value());
  const Tensor partials = workspace(x, room.sq_norm + room.inner, ScalarType::Float);
  run_direct(plan, {optional_data(mask), optional_data(slope)}, bias, data<float>(partials), data<float>(sq_norm),
             inner ? data<float>(*inner) : nullptr, current_stream(x));
}

void grad_sq_norm_gram_cuda(Tensor x, Tensor grad_y, std::optional<Tensor> mask, Tensor sq_norm, std::vector<int64_t> numbers, bool bias,
                            bool shifted) {
  STD_TORCH_CHECK(!mask.has_value() && !shifted, "grad_sq_norm: the cuda backend has no masked and no shifted Gram form");
  const Plan plan = plan_of(x, grad_y, numbers);
  STD_TORCH_CHECK(fits(sq_norm, ScalarType::Float, plan.samples, x), "grad_sq_norm: sq_norm must be float32 [N] on the device of x");
  const DeviceGuard guard(x.get_device_index());
  const Tensor partials = workspace(x, gram_room(plan), ScalarType::Float);
  run_gram(plan, bias, data<float>(partials), data<float>(sq_norm), current_stream(x));
}

}  // namespace
}  // namespace fastqat::grad_norm

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CUDA, m) {
  m.impl("grad_sq_norm_direct", TORCH_BOX(&fastqat::grad_norm::grad_sq_norm_direct_cuda));
  m.impl("grad_sq_norm_gram", TORCH_BOX(&fastqat::grad_norm::grad_sq_norm_gram_cuda));
}
