// Matrices of logits, features and probabilities, and class indices, from torch's tensors.
#pragma once

#include "logit_rows.h"
#include "tensors.h"

namespace fastqat::logits {

inline Matrix matrix_of(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2 && (t.size(1) <= 1 || t.stride(1) == 1), "rows must have neighbouring elements: [N, C] with stride 1");
  return make_matrix(t.data_ptr(), t.stride(0), storage_of(t));
}

// A matrix with the shape of `logits`.
inline Matrix matrix_like(const Tensor& t, const Tensor& logits) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(1) == logits.size(1) && fits(t, t.scalar_type(), logits.numel(), logits),
                  "teacher and target probabilities must have the shape and device of the logits");
  return matrix_of(t);
}

inline const int64_t* classes_of(const Tensor& targets, const Tensor& logits) {
  STD_TORCH_CHECK(fits(targets, ScalarType::Long, logits.size(0), logits) && (targets.numel() <= 1 || targets.stride(0) == 1),
                  "class indices must be int64, contiguous, one per row of logits, on their device");
  return data<const int64_t>(targets);
}

}  // namespace fastqat::logits
