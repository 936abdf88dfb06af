// Every per-sample score that needs only logits, on the CPU: one row at a time, read from memory once, then worked on in the cache.
// See logit_rows.h for the sums over a row; here they become scores, in fp64.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <vector>

#include "levels.h"
#include "logit_pairs.h"
#include "logit_soft.h"

namespace fastqat {
namespace {

struct Job {
  LogitMatrix logits, teacher, soft_targets;
  const int64_t* targets;  // null where there are none, or soft ones
  float *loss, *evs, *entropy, *confidence, *margin, *ds, *res, *kd;
  bool* correct;
  int64_t classes;
};

// Padded rows on 64-byte boundaries, one set per call of a worker: logits and exponents of student and teacher, soft targets.
struct Scratch {
  explicit Scratch(const Job& job)
      : groups(ceil_div(job.classes, kLanes)),
        memory(static_cast<size_t>((5 * groups + 1) * kLanes)),
        wide_exps(job.soft_targets.data ? static_cast<size_t>(groups * kLanes) : 0) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    float* const base = memory.data() + (64 - address % 64) % 64 / sizeof(float);
    const int64_t padded = groups * kLanes;
    student = {base, base + padded, 0, 0};
    teacher = {base + 2 * padded, base + 3 * padded, 0, 0};
    target = {base + 4 * padded, nullptr, 0, 0};
  }
  int64_t groups;
  std::vector<float> memory;
  std::vector<double> wide_exps;
  LogitRow student, teacher, target;
};

// Whether the target is the prediction: the first of the classes that share the top.
bool is_first_top(const LogitRow& row, double ties, int64_t target) {
  if (row.logits[target] != row.top) return false;
  int64_t first = ties > 1 ? 0 : target;
  while (row.logits[first] != row.top) ++first;
  return first == target;
}

void no_target(const Job& job, int64_t i) {
  job.loss[i] = job.evs[i] = std::numeric_limits<float>::quiet_NaN();
  job.correct[i] = false;
}

// Error vector: (sum of p_j)^2 + sum of p_j^2 over j != target. Where the target is not on top, one of the others is, with e = 1, so
// that taking e of the target out of the sums cancels nothing.
void finish_target(const Job& job, const LogitRow& row, const StudentSums& sums, int64_t i) {
  const int64_t target = job.targets[i];
  if (target < 0 || target >= job.classes) return no_target(job, i);
  const double d = static_cast<double>(row.logits[target]) - row.top, e = row.exps[target];
  const bool on_top = d == 0;
  const double others = sums.rest + (on_top ? sums.ties - 1 : sums.ties - e);
  const double others_sq = sums.rest_sq + (on_top ? sums.ties - 1 : sums.ties - e * e);
  job.loss[i] = static_cast<float>(sums.log_total - d);
  job.evs[i] = static_cast<float>(std::sqrt(others * others + others_sq) / sums.total);
  job.correct[i] = sums.total == sums.total && is_first_top(row, sums.ties, target);
}

FASTQAT_INLINE void score_soft_target(const Job& job, Scratch& scratch, const StudentSums& student, int64_t i) {
  LogitRow& target = scratch.target;
  load_row(job.soft_targets, i, job.classes, target);
  for (int64_t j = job.classes; j < scratch.groups * kLanes; ++j) target.logits[j] = 0;
  const SoftSums sums = add_soft_target(scratch.student, target, scratch.wide_exps.data(), scratch.groups);
  if (sums.weight != sums.weight) return no_target(job, i);
  job.loss[i] = static_cast<float>(student.log_total * sums.weight - sums.weighted);
  job.evs[i] = static_cast<float>(std::sqrt(sums.distance_sq));
  int64_t first = 0;
  while (target.logits[first] != target.top) ++first;
  job.correct[i] = student.total == student.total && is_first_top(scratch.student, student.ties, first);
}

void finish_student(const Job& job, const LogitRow& row, const StudentSums& sums, int64_t i) {
  const double total = sums.total;
  job.entropy[i] = static_cast<float>(sums.log_total - sums.weighted / total);
  job.confidence[i] = static_cast<float>(1 / total);
  job.margin[i] = static_cast<float>(-std::expm1(static_cast<double>(row.second) - row.top) / total);
}

void finish_teacher(const Job& job, const StudentSums& student, const Comparison& at, int64_t i) {
  job.ds[i] = static_cast<float>(at.distance_sq < 0 ? 0.0 : std::sqrt(at.distance_sq));
  job.res[i] = static_cast<float>(at.divergence < 0 ? 0.0 : at.divergence);
  job.kd[i] = static_cast<float>(student.log_total - at.cross);
}

FASTQAT_INLINE void score_rows(const Job& job, int64_t begin, int64_t end) {
  Scratch scratch(job);
  LogitRow &student = scratch.student, &teacher = scratch.teacher;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t next = i + 1 < end ? i + 1 : i;
    load_row(job.logits, i, job.classes, student);
    const StudentSums sums = add_exponents(student, job.logits.row(next), job.logits.group_bytes(), scratch.groups);
    finish_student(job, student, sums, i);
    if (job.targets) finish_target(job, student, sums, i);
    if (job.soft_targets.data) score_soft_target(job, scratch, sums, i);
    if (!job.teacher.data) continue;
    load_row(job.teacher, i, job.classes, teacher);
    const char* const next_row = job.teacher.row(next);
    const TeacherSums teacher_sums = add_exponents(teacher, student, next_row, job.teacher.group_bytes(), scratch.groups);
    finish_teacher(job, sums, compare_rows(student, teacher, sums, teacher_sums, scratch.groups), i);
  }
}

FASTQAT_LEVELS(score_rows)

template <class T>
T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

// Rows with contiguous classes, any row stride. targets: class indices [N], or probabilities [N, C].
void logit_scores_cpu(Tensor logits, std::optional<Tensor> targets, std::optional<Tensor> teacher, std::optional<Tensor> loss,
                      std::optional<Tensor> evs, std::optional<Tensor> correct, Tensor entropy, Tensor confidence, Tensor margin,
                      std::optional<Tensor> ds, std::optional<Tensor> res, std::optional<Tensor> kd) {
  Job job{};
  job.logits = as_matrix(logits);
  if (teacher) job.teacher = as_matrix(*teacher);
  const bool soft = targets && targets->scalar_type() != ScalarType::Long;
  if (soft)
    job.soft_targets = as_matrix(*targets);
  else
    job.targets = data_or_null<const int64_t>(targets);
  job.loss = data_or_null<float>(loss);
  job.evs = data_or_null<float>(evs);
  job.correct = data_or_null<bool>(correct);
  job.entropy = data<float>(entropy);
  job.confidence = data<float>(confidence);
  job.margin = data<float>(margin);
  job.ds = data_or_null<float>(ds);
  job.res = data_or_null<float>(res);
  job.kd = data_or_null<float>(kd);
  job.classes = logits.size(1);
  const auto loops = FASTQAT_AT_LEVEL(score_rows);
  const int64_t grain = ceil_div(kChunk, job.classes);
  torch::stable::parallel_for(0, logits.size(0), grain, [&](int64_t begin, int64_t end) { loops(job, begin, end); });
}

}  // namespace
}  // namespace fastqat

STABLE_TORCH_LIBRARY_IMPL(fastqat_native, CPU, m) { m.impl("logit_scores", TORCH_BOX(&fastqat::logit_scores_cpu)); }
