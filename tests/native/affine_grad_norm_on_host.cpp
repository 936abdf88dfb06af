// The CUDA kernels of layers with an affine part behind C functions, run on the CPU by cuda_on_host/cuda_runtime.h.
#include <limits>

#include "cuda/affine_grad_norm_launch.h"

using namespace fastqat;
using namespace fastqat::affine_grad_norm;

namespace {

struct Array {
  const void* data;
  int64_t size[3], stride[3];
};

}  // namespace

extern "C" {

void set_backwards(bool backwards) { host::backwards = backwards; }

// Partials and standards no kernel writes stay NaN, and show in the sums.
void sq_norm(const Array* x, const Array* grad_y, const float* mean, const float* var, float* out, int64_t statistics, int64_t groups,
             double eps, bool channels_inner, bool weight, bool bias, Storage storage) {
  const Shape shape{x->size[0], x->size[1], x->size[2], groups, channels_inner, static_cast<Kind>(statistics)};
  const int row = channels_inner ? 2 : 1;
  Job job = make_job(shape, eps, weight, bias);
  job.x = x->data;
  job.grad_y = grad_y->data;
  job.x_sample = x->stride[0];
  job.x_step = x->stride[row];
  job.grad_sample = grad_y->stride[0];
  job.grad_step = grad_y->stride[row];
  job.mean = mean;
  job.var = var;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> partials(room_of(job, shape, storage), nan);
  std::vector<Standard> standards(shape.cells(), {nan, nan, nan});
  job.partials = partials.data();
  job.standards = standards.data();
  run(job, shape, storage, out, nullptr);
}
}
