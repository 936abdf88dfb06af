// Fake quantization at the CUDA key: reads tensors into a job and launches on torch's current stream. Tensors are taken in storage
// order, as csrc/library.cpp says.
#include <torch/csrc/stable/library.h>

#include "fake_quant_launch.h"
#include "fake_quant_tensors.h"

namespace fastqat {
namespace {

CodeType code_type_of(const Tensor& codes) {
  switch (codes.scalar_type()) {
    case ScalarType::Char:
      return CodeType::int8;
    case ScalarType::Byte:
      return CodeType::uint8;
    case ScalarType::Short:
      return CodeType::int16;
    default:
      STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Int, "quantize_codes: codes must be int8, uint8, int16 or int32");
      return CodeType::int32;
  }
}

void fake_quant_cuda(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor x_hat, int64_t blocks, int64_t outer,
                     int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  const View view{blocks, outer, channels, inner};
  STD_TORCH_CHECK(x_hat.scalar_type() == x.scalar_type(), "fake_quant: x_hat must have the dtype of x");
  const Plan plan = make_plan(view, storage_of(x));
  const Job job = with_access(make_job(x, scale, zero_point, x_hat, view, qmin, qmax, reciprocal), plan);
  const DeviceGuard guard(x.get_device_index());
  run_forward(job, plan, current_stream(x));
}

void quantize_codes_cuda(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor codes, int64_t blocks, int64_t outer,
                         int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  const View view{blocks, outer, channels, inner};
  const Plan plan = make_plan(view, storage_of(x));
  Job job = make_job(x, scale, zero_point, codes, view, qmin, qmax, reciprocal);
  job.code_type = code_type_of(codes);
  job = with_access(job, plan);
  const DeviceGuard guard(x.get_device_index());
  run_codes(job, plan, current_stream(x));
}

void fake_quant_backward_cuda(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor grad_y, Tensor grad_x,
                              std::optional<Tensor> grad_scale, std::optional<Tensor> grad_zero_point, int64_t blocks, int64_t outer,
                              int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal, double grad_factor) {
  auto [job, plan] = make_backward(x, scale, zero_point, grad_y, grad_x, grad_scale, grad_zero_point, {blocks, outer, channels, inner},
                                   qmin, qmax, reciprocal, grad_factor);
  const DeviceGuard guard(x.get_device_index());
  const Tensor sums = workspace(x, workspace_size(job, plan));
  take_workspace(job, plan, static_cast<double*>(sums.data_ptr()));
  run_backward(job, plan, current_stream(x));
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CUDA, m) {
  m.impl("fake_quant", TORCH_BOX(&fastqat::fake_quant_cuda));
  m.impl("quantize_codes", TORCH_BOX(&fastqat::quantize_codes_cuda));
  m.impl("fake_quant_backward", TORCH_BOX(&fastqat::fake_quant_backward_cuda));
}
