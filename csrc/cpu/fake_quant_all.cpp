// Fake quantization of many tensors at the CPU key: their tasks, one after the other, in ONE parallel region. The partition of each
// tensor is its own, so every result has the bits of a call for that tensor alone.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "fake_quant_job.h"

namespace fastqat {
namespace {

using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;

constexpr size_t kNumbers = 7;  // blocks, outer, channels, inner, qmin, qmax, reciprocal of a tensor

void check_lengths(size_t n, std::initializer_list<size_t> others, const std::vector<int64_t>& numbers) {
  const bool same = std::all_of(others.begin(), others.end(), [&](size_t other) { return other == n; });
  STD_TORCH_CHECK(same && numbers.size() == kNumbers * n, "fake_quant_all: every list must have one entry per tensor, `numbers` ", kNumbers,
                  "; there are ", n, " tensors");
}

bool matches(const Tensor& t, const Tensor& x) { return t.numel() == x.numel() && t.scalar_type() == x.scalar_type(); }

std::vector<Job> make_jobs(const Tensors& xs, const Tensors& scales, const OptionalTensors& zero_points, const Tensors& outs,
                           const std::vector<int64_t>& numbers) {
  std::vector<Job> jobs;
  jobs.reserve(xs.size());
  for (size_t i = 0; i < xs.size(); ++i) {
    const int64_t* const n = numbers.data() + kNumbers * i;
    jobs.push_back(make_job(xs[i], scales[i], zero_points[i], make_partition(n[0], n[1], n[2], n[3]), n[4], n[5], n[6] != 0));
    STD_TORCH_CHECK(matches(outs[i], xs[i]), "fake_quant_all: output ", i, " must have the size and dtype of its x");
    jobs.back().out = outs[i].data_ptr();
  }
  return jobs;
}

// Task t of all belongs to the last job whose first task is at most t; jobs without a task are passed over.
void run_all(const std::vector<Job>& jobs, Loops loops) {
  std::vector<int64_t> ends(jobs.size());
  int64_t tasks = 0;
  for (size_t i = 0; i < jobs.size(); ++i) ends[i] = tasks += jobs[i].cut.tasks();
  torch::stable::parallel_for(0, tasks, 2, [&](int64_t begin, int64_t end) {
    auto i = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin());
    for (; begin < end; ++i) {
      const int64_t first = ends[i] - jobs[i].cut.tasks(), stop = std::min(end, ends[i]);
      if (begin < stop) loops(jobs[i], begin - first, stop - first);
      begin = stop;
    }
  });
}

void fake_quant_all_cpu(Tensors xs, Tensors scales, OptionalTensors zero_points, Tensors x_hats, std::vector<int64_t> numbers) {
  check_lengths(xs.size(), {scales.size(), zero_points.size(), x_hats.size()}, numbers);
  run_all(make_jobs(xs, scales, zero_points, x_hats, numbers), forward_loops());
}

float* sum_of(const std::optional<Tensor>& t, int64_t scales) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == scales, "fake_quant_all_backward: sums must be float32 with ",
                  scales, " elements");
  return data<float>(*t);
}

void fake_quant_all_backward_cpu(Tensors xs, Tensors scales, OptionalTensors zero_points, Tensors grad_ys, Tensors grad_xs,
                                 OptionalTensors grad_scales, OptionalTensors grad_zero_points, std::vector<int64_t> numbers,
                                 std::vector<double> grad_factors) {
  check_lengths(
      xs.size(),
      {scales.size(), zero_points.size(), grad_ys.size(), grad_xs.size(), grad_scales.size(), grad_zero_points.size(), grad_factors.size()},
      numbers);
  std::vector<Job> jobs = make_jobs(xs, scales, zero_points, grad_xs, numbers);
  std::vector<std::unique_ptr<PartialSums>> sums;
  for (size_t i = 0; i < jobs.size(); ++i) {
    STD_TORCH_CHECK(matches(grad_ys[i], xs[i]), "fake_quant_all_backward: gradient ", i, " must have the size and dtype of its x");
    STD_TORCH_CHECK(zero_points[i] || !grad_zero_points[i], "fake_quant_all_backward: a gradient of the zero point needs a zero point");
    jobs[i].grad_y = grad_ys[i].data_ptr();
    const int64_t count = jobs[i].cut.scales();
    sums.push_back(
        std::make_unique<PartialSums>(jobs[i], sum_of(grad_scales[i], count), sum_of(grad_zero_points[i], count), grad_factors[i]));
  }
  run_all(jobs, backward_loops());
  for (const auto& each : sums) each->finish();
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) {
  m.impl("fake_quant_all", TORCH_BOX(&fastqat::fake_quant_all_cpu));
  m.impl("fake_quant_all_backward", TORCH_BOX(&fastqat::fake_quant_all_backward_cpu));
}
