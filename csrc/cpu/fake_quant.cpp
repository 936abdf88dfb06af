// Fake quantization at the CPU key: reads tensors into a job, runs the loops in parallel, finishes the sums.
#include <torch/csrc/stable/library.h>

#include "fake_quant_job.h"

namespace fastqat {
namespace {

bool is(const Tensor& t, ScalarType type, int64_t numel) { return t.scalar_type() == type && t.numel() == numel; }

bool is(const std::optional<Tensor>& t, ScalarType type, int64_t numel) { return !t.has_value() || is(*t, type, numel); }

float* optional_output(const std::optional<Tensor>& t) { return t.has_value() ? data<float>(*t) : nullptr; }

void run(const Job& job, Loops loops) {
  torch::stable::parallel_for(0, job.cut.tasks(), 2, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
}

constexpr int64_t kSumBlock = 256;  // scales whose partials are added up side by side

// Second stage of scales [begin, end), which belong to one block of scales.
void add_up(const Partition& cut, const Sums& sums, int64_t begin, int64_t end) {
  double total[kSumBlock] = {};
  const int64_t block = begin / cut.channels, first = begin % cut.channels;
  for (int64_t row = 0; row < cut.sum_rows; ++row) {
    const double* partial = sums.partials + ((block * cut.sum_rows + row) * cut.channels + first) * cut.sum_run;
    for (int64_t c = 0; c < end - begin; ++c)
      for (int64_t i = 0; i < cut.sum_run; ++i) total[c] += *partial++;
  }
  for (int64_t c = 0; c < end - begin; ++c) sums.grad[begin + c] = static_cast<float>(total[c] * sums.factor);
}

void add_up(const Partition& cut, const Sums& sums) {
  if (!sums.grad || !sums.partials) return;
  const int64_t per_scale = at_least_one(cut.sum_rows * cut.sum_run);
  torch::stable::parallel_for(0, cut.scales(), ceil_div(kChunk, per_scale), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t block_end = at_most(end, (begin / cut.channels + 1) * cut.channels);
      const int64_t next = at_most(block_end, begin + kSumBlock);
      add_up(cut, sums, begin, next);
      begin = next;
    }
  });
}

}  // namespace

Job make_job(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point, const Partition& cut, int64_t qmin,
             int64_t qmax, bool reciprocal) {
  STD_TORCH_CHECK(x.numel() == cut.blocks * cut.block_size, "fake_quant: x has ", x.numel(), " elements, not ",
                  cut.blocks * cut.block_size);
  STD_TORCH_CHECK(is(scale, ScalarType::Float, cut.scales()) && is(zero_point, ScalarType::Float, cut.scales()),
                  "fake_quant: scale and zero point must be float32 with ", cut.scales(), " elements");
  Job job{};
  job.x = x.data_ptr();
  job.type = x.scalar_type();
  STD_TORCH_CHECK(job.type == ScalarType::Float || job.type == ScalarType::BFloat16 || job.type == ScalarType::Half,
                  "fake_quant: the cpu backend takes float32, bfloat16 and float16");
  job.scale = data<const float>(scale);
  job.zero_point = optional_data(zero_point);
  job.qmin = static_cast<float>(qmin);
  job.qmax = static_cast<float>(qmax);
  job.reciprocal = reciprocal;
  job.cut = cut;
  return job;
}

PartialSums::PartialSums(Job& job, float* grad_scale, float* grad_zero_point, double factor) : job_(job) {
  const Partition& cut = job.cut;
  const bool direct = cut.sum_rows == 1 && cut.sum_run == 1;
  const auto count = static_cast<size_t>(cut.partials());
  if (!direct) scale_.reset(new double[count]);
  if (!direct && grad_zero_point) zero_point_.reset(new double[count]);
  job.scale_sums = {grad_scale, scale_.get(), factor};
  job.zero_point_sums = {grad_zero_point, zero_point_.get(), factor};
}

void PartialSums::finish() const {
  add_up(job_.cut, job_.scale_sums);
  add_up(job_.cut, job_.zero_point_sums);
}

namespace {

void fake_quant_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor x_hat, int64_t blocks, int64_t outer, int64_t channels,
                    int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  Job job = make_job(x, scale, zero_point, make_partition(blocks, outer, channels, inner), qmin, qmax, reciprocal);
  STD_TORCH_CHECK(is(x_hat, x.scalar_type(), x.numel()), "fake_quant: x_hat must have the size and dtype of x");
  job.out = x_hat.data_ptr();
  run(job, forward_loops());
}

void quantize_codes_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor codes_out, int64_t blocks, int64_t outer,
                        int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal) {
  Job job = make_job(x, scale, zero_point, make_partition(blocks, outer, channels, inner), qmin, qmax, reciprocal);
  STD_TORCH_CHECK(codes_out.numel() == x.numel(), "quantize_codes: codes must have the size of x");
  job.out = codes_out.data_ptr();
  job.code_type = codes_out.scalar_type();
  run(job, codes_loops());
}

void fake_quant_backward_cpu(Tensor x, Tensor scale, std::optional<Tensor> zero_point, Tensor grad_y, Tensor grad_x,
                             std::optional<Tensor> grad_scale, std::optional<Tensor> grad_zero_point, int64_t blocks, int64_t outer,
                             int64_t channels, int64_t inner, int64_t qmin, int64_t qmax, bool reciprocal, double grad_factor) {
  Job job = make_job(x, scale, zero_point, make_partition(blocks, outer, channels, inner), qmin, qmax, reciprocal);
  const int64_t scales = job.cut.scales();
  STD_TORCH_CHECK(is(grad_y, x.scalar_type(), x.numel()) && is(grad_x, x.scalar_type(), x.numel()),
                  "fake_quant_backward: grad_y and grad_x must have the size and dtype of x");
  STD_TORCH_CHECK(is(grad_scale, ScalarType::Float, scales) && is(grad_zero_point, ScalarType::Float, scales),
                  "fake_quant_backward: sums must be float32 with ", scales, " elements");
  STD_TORCH_CHECK(zero_point || !grad_zero_point, "fake_quant_backward: a gradient of the zero point needs a zero point");
  job.grad_y = grad_y.data_ptr();
  job.out = grad_x.data_ptr();
  PartialSums sums(job, optional_output(grad_scale), optional_output(grad_zero_point), grad_factor);
  run(job, backward_loops());
  sums.finish();
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) {
  m.impl("fake_quant", TORCH_BOX(&fastqat::fake_quant_cpu));
  m.impl("quantize_codes", TORCH_BOX(&fastqat::quantize_codes_cpu));
  m.impl("fake_quant_backward", TORCH_BOX(&fastqat::fake_quant_backward_cpu));
}
