// From torch's tensors to jobs, through the stable ABI alone.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <array>

#include "../common.h"
#include "fake_quant_plan.h"

namespace fastqat {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline Storage storage_of(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "fake_quant: the cuda backend takes float32, bfloat16 and float16");
  return type == ScalarType::Float ? Storage::float32 : type == ScalarType::BFloat16 ? Storage::bfloat16 : Storage::float16;
}

// Sizes, types and devices are checked here too, since the operators can be called without the Python layer; layouts are the
// caller's word.
inline bool fits(const Tensor& t, ScalarType type, int64_t numel, const Tensor& x) {
  return t.scalar_type() == type && t.numel() == numel && t.is_cuda() && t.get_device_index() == x.get_device_index();
}

inline bool fits(const std::optional<Tensor>& t, ScalarType type, int64_t numel, const Tensor& x) {
  return !t.has_value() || fits(*t, type, numel, x);
}

inline Job make_job(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point, const Tensor& out, const View& view,
                    int64_t qmin, int64_t qmax, bool reciprocal) {
  STD_TORCH_CHECK(x.numel() == view.numel(), "fake_quant: x has ", x.numel(), " elements, not ", view.numel());
  STD_TORCH_CHECK(fits(scale, ScalarType::Float, view.scales(), x) && fits(zero_point, ScalarType::Float, view.scales(), x),
                  "fake_quant: scale and zero point must be float32 with ", view.scales(), " elements on the device of x");
  STD_TORCH_CHECK(fits(out, out.scalar_type(), x.numel(), x), "fake_quant: the output must have the size and device of x");
  Job job{};
  job.x = x.data_ptr();
  job.out = out.data_ptr();
  job.scale = data<const float>(scale);
  job.zero_point = optional_data(zero_point);
  job.qmin = static_cast<float>(qmin);
  job.qmax = static_cast<float>(qmax);
  job.reciprocal = reciprocal;
  return job;
}

// The job and plan of one tensor's backward; its partials are still missing.
inline std::pair<Job, Plan> make_backward(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point,
                                          const Tensor& grad_y, const Tensor& grad_x, const std::optional<Tensor>& grad_scale,
                                          const std::optional<Tensor>& grad_zero_point, const View& view, int64_t qmin, int64_t qmax,
                                          bool reciprocal, double grad_factor) {
  STD_TORCH_CHECK(fits(grad_y, x.scalar_type(), x.numel(), x) && grad_x.scalar_type() == x.scalar_type(),
                  "fake_quant_backward: grad_y and grad_x must have the size, dtype and device of x");
  STD_TORCH_CHECK(fits(grad_scale, ScalarType::Float, view.scales(), x) && fits(grad_zero_point, ScalarType::Float, view.scales(), x),
                  "fake_quant_backward: sums must be float32 with ", view.scales(), " elements on the device of x");
  STD_TORCH_CHECK(zero_point.has_value() || !grad_zero_point.has_value(), "fake_quant_backward: grad_zero_point needs a zero point");
  Job job = make_job(x, scale, zero_point, grad_x, view, qmin, qmax, reciprocal);
  job.grad_y = grad_y.data_ptr();
  job.grad_scale = grad_scale ? data<float>(*grad_scale) : nullptr;
  job.grad_zero_point = grad_zero_point ? data<float>(*grad_zero_point) : nullptr;
  job.factor = grad_factor;
  const Plan plan = make_plan(view, storage_of(x));
  return {with_access(job, plan), plan};
}

// Room for partials. torch's allocator hands it out in the order of the stream, in a graph's own pool while one is captured, so that
// it may be freed as soon as the kernels are launched.
inline Tensor workspace(const Tensor& x, int64_t doubles) { return torch::stable::new_empty(x, {&doubles, 1}, ScalarType::Double); }

inline int64_t workspace_size(const Job& job, const Plan& plan) {
  return job.whole ? 0 : plan.partials() * ((job.grad_scale != nullptr) + (job.grad_zero_point != nullptr));
}

// Gives a job its part of a workspace, and returns what is behind it.
inline double* take_workspace(Job& job, const Plan& plan, double* room) {
  job.scale_sums = room;
  job.zero_point_sums = room + (job.grad_scale != nullptr ? plan.partials() : 0);
  return room + workspace_size(job, plan);
}

}  // namespace fastqat
