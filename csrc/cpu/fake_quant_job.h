// One call of fake quantization on the CPU: the tensors as pointers, the cut into tasks, and where the sums go.
#pragma once

#include <cstring>
#include <memory>

#include "../common.h"
#include "partition.h"

namespace fastqat {

// Where the sums of one gradient go: into partials that finish() adds up, or, where every sum has one partial only, straight home.
struct Sums {
  float* grad = nullptr;  // null: not wanted
  double* partials = nullptr;
  double factor = 1;

  FASTQAT_INLINE void put(int64_t i, const double* values, int64_t n) const {
    if (partials)
      std::memcpy(partials + i, values, static_cast<size_t>(n) * sizeof(double));
    else if (grad)
      for (int64_t k = 0; k < n; ++k) grad[i + k] = static_cast<float>(values[k] * factor);
  }
  FASTQAT_INLINE void put(int64_t i, double value) const {
    if (partials)
      partials[i] = value;
    else if (grad)
      grad[i] = static_cast<float>(value * factor);
  }
};

struct Job {
  const void* x;
  const void* grad_y;
  void* out;  // x_hat, grad_x or codes
  const float* scale;
  const float* zero_point;  // null: all zero
  Sums scale_sums, zero_point_sums;
  ScalarType type, code_type;
  float qmin, qmax;
  bool reciprocal;
  Partition cut;
};

// Runs tasks [begin, end) of a job.
using Loops = void (*)(const Job&, int64_t begin, int64_t end);

// The loops at the instruction-set level of the moment.
Loops forward_loops();
Loops codes_loops();
Loops backward_loops();

// Checks sizes and types, since the operators can be called without the Python layer; layouts are the caller's word.
Job make_job(const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point, const Partition& cut, int64_t qmin,
             int64_t qmax, bool reciprocal);

// Memory for the partials of a job's sums, and their second stage: fixed order, fp64, one value per scale.
class PartialSums {
 public:
  PartialSums(Job& job, float* grad_scale, float* grad_zero_point, double factor);
  void finish() const;

 private:
  Job& job_;
  std::unique_ptr<double[]> scale_, zero_point_;
};

}  // namespace fastqat
