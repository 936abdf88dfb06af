// Scores of logits at the CUDA key: reads tensors into a job and launches on torch's current stream. Arguments are as csrc/library.cpp
// says; a row whose target is no class gets NaN, since to look for one would make the host wait.
#include <torch/csrc/stable/library.h>

#include "logit_scores_launch.h"
#include "logit_tensors.h"

namespace fastqat::logits {
namespace {

template <class T>
T* score(const std::optional<Tensor>& values, bool wanted, const Tensor& logits) {
  const ScalarType type = std::is_same_v<T, bool> ? ScalarType::Bool : ScalarType::Float;
  STD_TORCH_CHECK(values.has_value() == wanted && fits(values, type, logits.size(0), logits),
                  "logit_scores: a score must be [N] on the device of logits, float32 (bool for correct), and given where its input is");
  return wanted ? data<T>(*values) : nullptr;
}

void logit_scores_cuda(Tensor logits, std::optional<Tensor> targets, std::optional<Tensor> teacher, std::optional<Tensor> loss,
                       std::optional<Tensor> evs, std::optional<Tensor> correct, Tensor entropy, Tensor confidence, Tensor margin,
                       std::optional<Tensor> ds, std::optional<Tensor> res, std::optional<Tensor> kd) {
  Job job{};
  job.logits = matrix_of(logits);
  job.rows = logits.size(0);
  job.classes = logits.size(1);
  const bool aimed = targets.has_value(), hard = aimed && targets->scalar_type() == ScalarType::Long;
  if (teacher) job.teacher = matrix_like(*teacher, logits);
  if (hard) job.targets = classes_of(*targets, logits);
  if (aimed && !hard) job.soft = matrix_like(*targets, logits);
  job.loss = score<float>(loss, aimed, logits);
  job.evs = score<float>(evs, aimed, logits);
  job.correct = score<bool>(correct, aimed, logits);
  job.entropy = score<float>(entropy, true, logits);
  job.confidence = score<float>(confidence, true, logits);
  job.margin = score<float>(margin, true, logits);
  job.ds = score<float>(ds, teacher.has_value(), logits);
  job.res = score<float>(res, teacher.has_value(), logits);
  job.kd = score<float>(kd, teacher.has_value(), logits);
  const DeviceGuard guard(logits.get_device_index());
  run(job, current_stream(logits));
}

}  // namespace
}  // namespace fastqat::logits

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CUDA, m) { m.impl("logit_scores", TORCH_BOX(&fastqat::logits::logit_scores_cuda)); }
