// The last layer's gradient norm per sample, |p - y| * sqrt(bias + |h|^2), on the CPU: each row of logits and features is read once.
//
//   |p - y|^2 = (sum of p_j)^2 + sum of p_j^2 over the classes j but the target
//
// The target never enters a sum, so that a sample that is learned to the last digit keeps the digits of its small norm.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "levels.h"
#include "logit_rows.h"

namespace fastqat {
namespace {

struct Job {
  LogitMatrix logits, features;
  const int64_t* targets;
  float* norm;
  int64_t classes, width;
  double bias;  // 1 or 0
};

constexpr int64_t kFewClasses = 128;  // up to here a row per lane is faster than a row's classes side by side

template <class T>
FASTQAT_INLINE void load_columns(const LogitMatrix& matrix, int64_t begin, int64_t rows, int64_t classes, float* columns) {
  for (int64_t l = 0; l < kLanes; ++l) {
    const T* const row = reinterpret_cast<const T*>(matrix.row(begin + (l < rows ? l : 0)));
    for (int64_t c = 0; c < classes; ++c) columns[c * kLanes + l] = widen(row[c]);
  }
}

// Class by class, a row per lane; lanes beyond the last row repeat the first.
FASTQAT_INLINE void load_columns(const LogitMatrix& matrix, int64_t begin, int64_t rows, int64_t classes, float* columns) {
  if (matrix.type == ScalarType::Float) return load_columns<float>(matrix, begin, rows, classes, columns);
  if (matrix.type == ScalarType::BFloat16) return load_columns<bf16>(matrix, begin, rows, classes, columns);
  load_columns<fp16>(matrix, begin, rows, classes, columns);
}

// Moves the targets' logits out of the columns; NaN for a target that is no class.
FASTQAT_INLINE void take_targets(const Job& job, int64_t begin, int64_t rows, float* columns, float* own) {
  for (int64_t l = 0; l < kLanes; ++l) {
    const int64_t target = job.targets[begin + (l < rows ? l : 0)];
    const bool exists = target >= 0 && target < job.classes;
    float& logit = columns[(exists ? target : 0) * kLanes + l];
    own[l] = exists ? logit : std::numeric_limits<float>::quiet_NaN();
    logit = -kInfinity;
  }
}

// |p - y| of `rows` rows, at most kLanes. NaN where a row has no result: NaN - top and infinity - infinity go into its sums.
FASTQAT_INLINE void error_norms(const Job& job, int64_t begin, int64_t rows, float* __restrict columns, double* error) {
  load_columns(job.logits, begin, rows, job.classes, columns);
  float top[kLanes], own[kLanes];
  for (int l = 0; l < kLanes; ++l) top[l] = -kInfinity;
  for (int64_t c = 0; c < job.classes; ++c)
    for (int l = 0; l < kLanes; ++l) top[l] = larger(columns[c * kLanes + l], top[l]);
  take_targets(job, begin, rows, columns, own);
  double sums[2][kLanes] = {};
  for (int64_t block = 0; block < job.classes; block += kGroups) {
    const int64_t end = block + kGroups < job.classes ? block + kGroups : job.classes;
    float part[2][kLanes] = {};
    for (int64_t c = block; c < end; ++c)
      for (int l = 0; l < kLanes; ++l) {
        const float e = exp_nonpositive(columns[c * kLanes + l] - top[l]);
        part[0][l] += e;
        part[1][l] += e * e;
      }
    for (int l = 0; l < kLanes; ++l) {
      sums[0][l] += part[0][l];
      sums[1][l] += part[1][l];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const double others = sums[0][l];
    error[l] = std::sqrt(others * others + sums[1][l]) / (others + exp_nonpositive(own[l] - top[l]));
  }
}

// |p - y| of a loaded row of logits, whose target's logit it overwrites. NaN where the row holds NaN or +inf, or only -inf.
FASTQAT_INLINE double error_norm(LogitRow& row, int64_t target, int64_t groups) {
  const float own = exp_nonpositive(row.logits[target] - row.top);
  row.logits[target] = -kInfinity;
  const float* __restrict logits = row.logits;
  const float top = row.top;
  LaneSums<2> sums;
  for (int64_t block = 0; block < groups; block += kGroups) {
    const int64_t end = block + kGroups < groups ? block + kGroups : groups;
    float part[2][kLanes] = {};
    for (int64_t g = block; g < end; ++g)
      for (int l = 0; l < kLanes; ++l) {
        const float e = exp_nonpositive(logits[g * kLanes + l] - top);
        part[0][l] += e;
        part[1][l] += e * e;
      }
    sums.add(part);
  }
  const double others = sums.total(0);
  return std::sqrt(others * others + sums.total(1)) / (others + own + no_number(row));
}

constexpr int kChains = 4;  // sums side by side, since one addition takes as long as four loads

template <class T>
FASTQAT_INLINE double sum_of_squares(const char* row, int64_t width) {
  constexpr int64_t kStep = kChains * kLanes, kMost = kGroups * kStep;
  const T* __restrict x = reinterpret_cast<const T*>(row);
  const int64_t whole = width / kStep * kStep;
  LaneSums<kChains> sums;
  for (int64_t block = 0; block < whole; block += kMost) {
    const int64_t end = block + kMost < whole ? block + kMost : whole;
    float part[kChains][kLanes] = {};
    for (int64_t i = block; i < end; i += kStep)
      for (int c = 0; c < kChains; ++c)
        for (int l = 0; l < kLanes; ++l) {
          const float v = widen(x[i + c * kLanes + l]);
          part[c][l] += v * v;
        }
    sums.add(part);
  }
  double rest = 0;
  for (int64_t i = whole; i < width; ++i) {
    const double v = widen(x[i]);
    rest += v * v;
  }
  for (int c = 1; c < kChains; ++c)
    for (int l = 0; l < kLanes; ++l) sums.lanes[0][l] += sums.lanes[c][l];
  return sums.total(0) + rest;
}

FASTQAT_INLINE double sum_of_squares(const LogitMatrix& matrix, int64_t i, int64_t width) {
  if (matrix.type == ScalarType::Float) return sum_of_squares<float>(matrix.row(i), width);
  if (matrix.type == ScalarType::BFloat16) return sum_of_squares<bf16>(matrix.row(i), width);
  return sum_of_squares<fp16>(matrix.row(i), width);
}

FASTQAT_INLINE void store_norm(const Job& job, int64_t i, double error) {
  job.norm[i] = static_cast<float>(error * std::sqrt(job.bias + sum_of_squares(job.features, i, job.width)));
}

FASTQAT_INLINE void norm_rows(const Job& job, int64_t begin, int64_t end) {
  const int64_t groups = ceil_div(job.classes, kLanes);
  std::vector<float> logits(static_cast<size_t>(groups * kLanes));
  LogitRow row{logits.data(), nullptr, 0, 0};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t target = job.targets[i];
    const bool exists = target >= 0 && target < job.classes;
    if (exists) load_row(job.logits, i, job.classes, row);
    store_norm(job, i, exists ? error_norm(row, target, groups) : std::numeric_limits<double>::quiet_NaN());
  }
}

FASTQAT_INLINE void norm_blocks(const Job& job, int64_t begin, int64_t end) {
  float columns[kFewClasses * kLanes];
  double error[kLanes];
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t rows = end - i < kLanes ? end - i : kLanes;
    error_norms(job, i, rows, columns, error);
    for (int64_t l = 0; l < rows; ++l) store_norm(job, i + l, error[l]);
  }
}

FASTQAT_LEVELS(norm_blocks)
FASTQAT_LEVELS(norm_rows)

void grand_last_cpu(Tensor logits, Tensor targets, Tensor features, Tensor norm, bool bias) {
  const Job job{as_matrix(logits), as_matrix(features), data<const int64_t>(targets), data<float>(norm), logits.size(1),
                features.size(1),  bias ? 1.0 : 0.0};
  const auto loops = job.classes <= kFewClasses ? FASTQAT_AT_LEVEL(norm_blocks) : FASTQAT_AT_LEVEL(norm_rows);
  const int64_t grain = ceil_div(kChunk, job.classes + job.width);
  torch::stable::parallel_for(0, logits.size(0), grain, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("grand_last", TORCH_BOX(&fastqat::grand_last_cpu)); }
