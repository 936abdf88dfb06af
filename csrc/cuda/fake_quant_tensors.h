// From torch's tensors to jobs, through the stable ABI alone.
#pragma once

#include "fake_quant_plan.h"
#include "tensors.h"

namespace fastqat {

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
