// Gradient norms of layers with an affine part at the CUDA key: reads tensors into a job and launches on torch's current stream. Arguments
// are as csrc/library.cpp says.
#include <torch/csrc/stable/library.h>

#include "affine_grad_norm_launch.h"
#include "tensors.h"

namespace fastqat::affine_grad_norm {
namespace {

void check(const Tensor& x, const Tensor& grad_y, const std::optional<Tensor>& mean, const std::optional<Tensor>& var,
           const Tensor& sq_norm, int64_t statistics, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 3 && grad_y.dim() == 3 && fits(grad_y, x.scalar_type(), x.numel(), x),
                  "affine_grad_sq_norm: x and grad_y must be [N, C, T] of one dtype on one device");
  for (int dim = 0; dim < 3; ++dim)
    STD_TORCH_CHECK(x.size(dim) == grad_y.size(dim), "affine_grad_sq_norm: x and grad_y must have the same sizes");
  STD_TORCH_CHECK(statistics >= 0 && statistics <= static_cast<int64_t>(Kind::rms) && groups > 0 && x.size(1) % groups == 0,
                  "affine_grad_sq_norm: statistics must be 0 to 5, and groups divide the ", x.size(1), " channels");
  STD_TORCH_CHECK(fits(mean, ScalarType::Float, x.size(1), x) && fits(var, ScalarType::Float, x.size(1), x),
                  "affine_grad_sq_norm: mean and var must be float32 [C] on the device of x");
  STD_TORCH_CHECK(fits(sq_norm, ScalarType::Float, x.size(0), x), "affine_grad_sq_norm: sq_norm must be float32 [N] on the device of x");
}

void affine_grad_sq_norm_cuda(Tensor x, Tensor grad_y, std::optional<Tensor> mean, std::optional<Tensor> var, Tensor sq_norm,
                              int64_t statistics, int64_t groups, double eps, bool channels_inner, bool weight, bool bias) {
  check(x, grad_y, mean, var, sq_norm, statistics, groups);
  const Shape shape{x.size(0), x.size(1), x.size(2), groups, channels_inner, static_cast<Kind>(statistics)};
  STD_TORCH_CHECK(channels_inner || !shape.by_position(), "affine_grad_sq_norm: statistics by position need neighbouring channels");
  const int row = channels_inner ? 2 : 1;
  const Storage storage = storage_of(x);
  Job job = make_job(shape, eps, weight, bias);
  job.x = x.data_ptr();
  job.grad_y = grad_y.data_ptr();
  job.x_sample = x.stride(0);
  job.x_step = x.stride(row);
  job.grad_sample = grad_y.stride(0);
  job.grad_step = grad_y.stride(row);
  job.mean = optional_data(mean);
  job.var = optional_data(var);
  const DeviceGuard guard(x.get_device_index());
  const Tensor partials = workspace(x, room_of(job, shape, storage), ScalarType::Float);
  const Tensor standards = workspace(x, 3 * shape.cells(), ScalarType::Float);
  static_assert(sizeof(Standard) == 3 * sizeof(float), "standards lie in a tensor of floats");
  job.partials = data<float>(partials);
  job.standards = data<Standard>(standards);
  run(job, shape, storage, data<float>(sq_norm), current_stream(x));
}

}  // namespace
}  // namespace fastqat::affine_grad_norm

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CUDA, m) {
  m.impl("affine_grad_sq_norm", TORCH_BOX(&fastqat::affine_grad_norm::affine_grad_sq_norm_cuda));
}
