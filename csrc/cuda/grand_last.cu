// The last layer's gradient norm at the CUDA key: reads tensors into a job and launches on torch's current stream.
#include <torch/csrc/stable/library.h>

#include "grand_last_launch.h"
#include "logit_tensors.h"

namespace fastqat::grand_last {
namespace {

void grand_last_cuda(Tensor logits, Tensor targets, Tensor features, Tensor norm, bool bias) {
  STD_TORCH_CHECK(features.dim() == 2 && fits(features, features.scalar_type(), logits.size(0) * features.size(1), logits),
                  "grand_last: features must be [N, D], a row per row of logits, on their device");
  STD_TORCH_CHECK(fits(norm, ScalarType::Float, logits.size(0), logits), "grand_last: norm must be float32 [N] on the device of logits");
  Job job{logits::matrix_of(logits), logits::matrix_of(features), logits::classes_of(targets, logits), data<float>(norm)};
  job.rows = logits.size(0);
  job.classes = logits.size(1);
  job.width = features.size(1);
  job.bias = bias ? 1.0 : 0.0;
  const DeviceGuard guard(logits.get_device_index());
  run(job, current_stream(logits));
}

}  // namespace
}  // namespace fastqat::grand_last

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CUDA, m) { m.impl("grand_last", TORCH_BOX(&fastqat::grand_last::grand_last_cuda)); }
