// The CUDA kernels of logit scores and of the last layer's gradient norm behind C functions, run on the CPU by
// cuda_on_host/cuda_runtime.h.
#include "cuda/grand_last_launch.h"
#include "cuda/logit_scores_launch.h"

using namespace fastqat;

namespace {

struct Rows {
  const void* data;
  int64_t step;
  Storage storage;
  logits::Matrix matrix() const { return logits::make_matrix(data, step, storage); }
};

}  // namespace

extern "C" {

void set_backwards(bool backwards) { host::backwards = backwards; }

// teacher, soft: without data where there are none. scores: loss, evs, entropy, confidence, margin, ds, res, kd.
void scores(const Rows* given, const int64_t* targets, float* const* scores, bool* correct, int64_t rows, int64_t classes) {
  logits::Job job{given[0].matrix(), given[1].matrix(), given[2].matrix(), targets};
  float** const fields[] = {&job.loss, &job.evs, &job.entropy, &job.confidence, &job.margin, &job.ds, &job.res, &job.kd};
  for (int s = 0; s < 8; ++s) *fields[s] = scores[s];
  job.correct = correct;
  job.rows = rows;
  job.classes = classes;
  logits::run(job, nullptr);
}

void norms(const Rows* given, const int64_t* targets, float* norm, int64_t rows, int64_t classes, int64_t width, bool bias) {
  grand_last::Job job{given[0].matrix(), given[1].matrix(), targets, norm, rows, classes, width, bias ? 1.0 : 0.0};
  grand_last::run(job, nullptr);
}
}
