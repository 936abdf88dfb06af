// Fake quantization at the CPU key: reads tensors into a job, runs the loops in parallel, finishes the sums.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "fake_quant_loops.h"

namespace fastqat {
namespace {

using Loops = void (*)(const Job&, int64_t, int64_t);

void run(const Job& job, Loops loops) {
  torch::stable::parallel_for(0, job.cut.tasks(), 2, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
}

// One value per column: repeats each channel's value over its short run.
std::vector<float> per_column(const float* values, int64_t channels, int64_t inner) {
  std::vector<float> expanded(static_cast<size_t>(channels * inner));
  for (int64_t i = 0; i < channels * inner; ++i) expanded[static_cast<size_t>(i)] = values[i / inner];
  return expanded;
}

struct Prepared {
  Job job;
  std::vector<float> scale, zero_point;  // expanded when the cut goes by column
};

bool is(const Tensor& t, ScalarType type, int64_t numel) { return t.scalar_type() == type && t.numel() == numel; }

bool is(const std::optional<Tensor>& t, ScalarType type, int64_t numel) { return !t.has_value() || is(*t, type, numel); }

// Sizes and types are checked here too, since the operators can be called without the Python layer; layouts are the caller's word.
void prepare(Prepared& p, const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point, int64_t blocks, int64_t outer,
             int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  STD_TORCH_CHECK(blocks == 1 && x.numel() == outer * channels * inner, "fake_quant: x has ", x.numel(), " elements, not ",
                  outer * channels * inner);
  STD_TORCH_CHECK(is(scale, ScalarType::Float, channels) && is(zero_point, ScalarType::Float, channels),
                  "fake_quant: scale and zero point must be float32 with ", channels, " elements");
  Job& job = p.job;
  job = Job{};
  job.x = x.data_ptr();
  job.type = x.scalar_type();
  STD_TORCH_CHECK(job.type == ScalarType::Float || job.type == ScalarType::BFloat16 || job.type == ScalarType::Half,
                  "fake_quant: the cpu backend takes float32, bfloat16 and float16");
  job.scale = data<const float>(scale);
  job.zero_point = optional_data(zero_point);
  job.channels = channels;
  job.qmin = static_cast<float>(qmin);
  job.qmax = static_cast<float>(qmax);
  job.reciprocal = reciprocal;
  job.cut = make_partition(outer, channels, inner);
  if (job.cut.by_column && inner > 1) {
    p.scale = per_column(job.scale, channels, inner);
    job.scale = p.scale.data();
    if (job.zero_point) p.zero_point = per_column(job.zero_point, channels, inner);
    if (job.zero_point) job.zero_point = p.zero_point.data();
  }
}

// Second stage of the sums: fixed order, fp64, one value per channel. Partials lie as [repeats][channels][run]: one run per column
// of a channel, or per task of a row.
void finish_sums(const Job& job, const std::vector<double>& partials, int64_t inner, double factor, float* grad) {
  const int64_t run = job.cut.by_column ? inner : job.cut.column_tasks;
  std::vector<double> total(static_cast<size_t>(job.channels), 0.0);
  const double* partial = partials.data();
  const double* const end = partial + partials.size();
  while (partial < end)
    for (double& sum : total)
      for (int64_t i = 0; i < run; ++i) sum += *partial++;
  for (int64_t c = 0; c < job.channels; ++c) grad[c] = static_cast<float>(total[static_cast<size_t>(c)] * factor);
}

void fake_quant_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor x_hat, int64_t blocks, int64_t outer, int64_t channels,
                    int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  Prepared p;
  prepare(p, x, scale, zero_point, blocks, outer, channels, inner, qmin, qmax, reciprocal);
  STD_TORCH_CHECK(is(x_hat, x.scalar_type(), x.numel()), "fake_quant: x_hat must have the size and dtype of x");
  p.job.out = x_hat.data_ptr();
  run(p.job, FASTQAT_AT_LEVEL(forward));
}

void quantize_codes_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor codes_out, int64_t blocks, int64_t outer,
                        int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  Prepared p;
  prepare(p, x, scale, zero_point, blocks, outer, channels, inner, qmin, qmax, reciprocal);
  STD_TORCH_CHECK(codes_out.numel() == x.numel(), "quantize_codes: codes must have the size of x");
  p.job.out = codes_out.data_ptr();
  p.job.code_type = codes_out.scalar_type();
  run(p.job, FASTQAT_AT_LEVEL(codes));
}

void fake_quant_backward_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor grad_y, Tensor grad_x,
                             std::optional<Tensor> grad_scale, std::optional<Tensor> grad_zero_point, int64_t blocks, int64_t outer,
                             int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal, double grad_factor) {
  Prepared p;
  prepare(p, x, scale, zero_point, blocks, outer, channels, inner, qmin, qmax, reciprocal);
  STD_TORCH_CHECK(is(grad_y, x.scalar_type(), x.numel()) && is(grad_x, x.scalar_type(), x.numel()),
                  "fake_quant_backward: grad_y and grad_x must have the size and dtype of x");
  STD_TORCH_CHECK(is(grad_scale, ScalarType::Float, channels) && is(grad_zero_point, ScalarType::Float, channels),
                  "fake_quant_backward: sums must be float32 with ", channels, " elements");
  Job& job = p.job;
  job.grad_y = grad_y.data_ptr();
  job.out = grad_x.data_ptr();
  const int64_t count = job.cut.by_column ? job.cut.row_tasks * job.cut.columns : job.cut.rows * job.cut.column_tasks;
  std::vector<double> scale_sums(static_cast<size_t>(count));
  std::vector<double> zero_point_sums(grad_zero_point ? static_cast<size_t>(count) : 0);
  job.scale_sums = scale_sums.data();
  job.zero_point_sums = grad_zero_point ? zero_point_sums.data() : nullptr;
  run(job, FASTQAT_AT_LEVEL(backward));
  if (grad_scale) finish_sums(job, scale_sums, inner, grad_factor, data<float>(*grad_scale));
  if (grad_zero_point) finish_sums(job, zero_point_sums, inner, grad_factor, data<float>(*grad_zero_point));
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) {
  m.impl("fake_quant", TORCH_BOX(&fastqat::fake_quant_cpu));
  m.impl("quantize_codes", TORCH_BOX(&fastqat::quantize_codes_cpu));
  m.impl("fake_quant_backward", TORCH_BOX(&fastqat::fake_quant_backward_cpu));
}
