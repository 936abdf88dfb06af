// Every per-sample score that needs only logits: a group of threads sums over a row, then compares it with the teacher's and with soft
// targets. Rows that fit stay in registers in between, longer ones are read again, from the cache.
#pragma once

#include "../logit_element.h"
#include "logit_rows.h"

namespace fastqat::logits {

struct Job {
  Matrix logits, teacher, soft;  // soft: target probabilities
  const int64_t* targets;
  float *loss, *evs, *entropy, *confidence, *margin, *ds, *res, *kd;
  bool* correct;
  int64_t rows, classes;
  int shift;  // 1 << shift threads for a row
};

enum { kCross = 2 };  // sum of e of the teacher times (z - top) of the student, behind kTies and kRest

struct Teacher {
  float top = -kInfinity;
  Sums<3> sums{};

  __device__ __forceinline__ double total() const { return sums.at[kTies] + sums.at[kRest]; }

  __device__ __forceinline__ void student_moves(float by) { sums.at[kCross] += total() * by; }

  __device__ __forceinline__ void move(float to) {
    const double scale = expf(way(top, to));
    sums.at[kCross] = scale > 0 ? scale * sums.at[kCross] : 0.0;
    sums.at[kRest] = scale * total();
    sums.at[kTies] = 0;
    top = to;
  }

  template <int kChunks>
  __device__ __forceinline__ void add(const Tile<kChunks>& tile, Tile<kChunks>& student, const Span<kChunks>& span, float student_base) {
    float here = -kInfinity;
    for_tile(span, [&](int k, int j) { here = fmaxf(here, tile.at[k][j]); });
    if (here > top) move(here);
    const float base = base_of(top);
    float ties = 0, rest = 0, cross = 0;
    for_tile(span, [&](int k, int j) {
      forget(student.at[k][j]);
      const float d = tile.at[k][j] - base, e = exp_nonpositive(d);
      ties += d >= 0.0f ? 1.0f : 0.0f;
      rest += d >= 0.0f ? 0.0f : e;
      cross = e > 0.0f ? __fmaf_rn(e, student.at[k][j] - student_base, cross) : cross;
    });
    sums.at[kTies] += ties;
    sums.at[kRest] += rest;
    sums.at[kCross] += cross;
  }

  template <int kThreads>
  __device__ __forceinline__ void fold(int lanes) {
    const float row = fold_lanes<kThreads>(top, lanes, [](float a, float b) { return fmaxf(a, b); });
    if (row > top) move(row);
    top = row;
    sums = sum_lanes<kThreads>(sums, lanes);
    sums.at[kRest] += static_cast<double>(row) - row;
  }
};

// Sums over target probabilities y; NaN where one is negative or infinite.
struct SoftTarget {
  Largest largest{-kInfinity, -kInfinity, 0};
  Sums<2> sums{};  // of y, and of y (z - top)

  __device__ __forceinline__ void student_moves(float by) { sums.at[1] += sums.at[0] * by; }

  template <int kChunks>
  __device__ __forceinline__ void add(const Tile<kChunks>& tile, Tile<kChunks>& student, const Span<kChunks>& span, float student_base) {
    largest = with_tile(largest, tile, span);
    float all = 0, cross = 0;
    for_tile(span, [&](int k, int j) {
      forget(student.at[k][j]);
      const float y = tile.at[k][j];
      all += y >= 0.0f && y < kInfinity ? y : kNaN;
      cross = y > 0.0f ? __fmaf_rn(y, student.at[k][j] - student_base, cross) : cross;
    });
    sums.at[0] += all;
    sums.at[1] += cross;
  }

  template <int kThreads>
  __device__ __forceinline__ void fold(int lanes) {
    largest = largest_of_row<kThreads>(largest, lanes);
    sums = sum_lanes<kThreads>(sums, lanes);
  }
};

// What turns a logit into a probability.
struct Scale {
  float top, share;
  __device__ __forceinline__ float probability(float z) const { return exp_nonpositive(z - top) * share; }
};

enum { kDifference, kDifferenceSq, kAgainstP, kDivergence };  // the sums of Agreement

// What the comparison needs of the sums: z - zt where p = t, and the sum of p^2.
struct Known {
  Scale to_p, to_t;
  double shift, p_sq;

  __device__ __forceinline__ Known(const Student& student, const Teacher& teacher) {
    const double all = student.total();
    const float total = static_cast<float>(all), teacher_total = static_cast<float>(teacher.total());
    to_p = {student.largest.top, 1.0f / total};
    to_t = {teacher.top, 1.0f / teacher_total};
    shift = static_cast<double>(to_p.top) - to_t.top + logf(total / teacher_total);
    p_sq = (student.sums.at[kTies] + student.sums.at[kRestSq]) / (all * all);
  }

  __device__ __forceinline__ double ds_sq(const Sums<4>& sums) const {
    return Agreement{sums.at[kDifference], sums.at[kDifferenceSq], sums.at[kAgainstP], 0}.corrected_sq(p_sq);
  }
};

template <int kChunks>
__device__ __forceinline__ void add_agreement(Tile<kChunks>& student, Tile<kChunks>& teacher, const Span<kChunks>& span, const Known& known,
                                              Sums<4>& sums) {
  const float shift_high = static_cast<float>(known.shift), shift_low = static_cast<float>(known.shift - shift_high);
  float difference = 0, difference_sq = 0, against_p = 0, divergence = 0;
  for_tile(span, [&](int k, int j) {
    float &z = student.at[k][j], &zt = teacher.at[k][j];
    forget(z);
    forget(zt);
    const float p = known.to_p.probability(z);
    const ClassAgreement at = compare_class(z, zt, p, known.to_t.probability(zt), shift_high, shift_low);
    difference += at.difference;
    difference_sq = __fmaf_rn(at.difference, at.difference, difference_sq);
    against_p = __fmaf_rn(at.difference, p, against_p);
    divergence += at.divergence;
  });
  sums.at[kDifference] += difference;
  sums.at[kDifferenceSq] += difference_sq;
  sums.at[kAgainstP] += against_p;
  sums.at[kDivergence] += divergence;
}

// How a row is worked on. kHeld: it is one tile, which stays in registers.
template <int kThreads_, int kChunks_, bool kHeld_, bool kSoft_>
struct Way {
  static constexpr int kThreads = kThreads_, kChunks = kChunks_, kBlocks = 512 / kThreads;
  static constexpr bool kHeld = kHeld_, kSoft = kSoft_;
};

// A row, or a tile of it.
template <class Way>
struct Row {
  const Job& job;
  int64_t row;
  int lane;
  Tile<Way::kChunks> z, zt, y;  // y: soft targets

  __device__ __forceinline__ Row(const Job& job_, int64_t row_, int lane_) : job(job_), row(row_), lane(lane_) {}

  // body(span) with each tile loaded, or with the one that is.
  template <class Body>
  __device__ __forceinline__ void for_row(bool load, const Body& body) {
    const auto on_tile = [&](const Span<Way::kChunks>& span) {
      if (load) load_tile(job.logits, row, span, z);
      if (load && job.teacher.data) load_tile(job.teacher, row, span, zt);
      if (load && Way::kSoft) load_tile(job.soft, row, span, y, 0.0f);
      body(span);
    };
    if constexpr (Way::kHeld)
      on_tile(span_of<Way::kChunks>(0, job.classes, lane, job.shift));
    else
      for_tiles<Way::kChunks>(job.classes, lane, job.shift, on_tile);
  }

  __device__ __forceinline__ void sum(Student& student, Teacher& teacher, SoftTarget& soft) {
    for_row(true, [&](const auto& span) {
      const float by = student.add(z, span), base = base_of(student.largest.top);
      teacher.student_moves(by);
      if (Way::kSoft) soft.student_moves(by);
      if (job.teacher.data) teacher.add(zt, z, span, base);
      if (Way::kSoft) soft.add(y, z, span, base);
    });
    const int lanes = 1 << job.shift;
    const float by = student.template fold<Way::kThreads>(lanes);
    teacher.student_moves(by);
    if (Way::kSoft) soft.student_moves(by);
    if (job.teacher.data) teacher.template fold<Way::kThreads>(lanes);
    if (Way::kSoft) soft.template fold<Way::kThreads>(lanes);
  }

  // The normalisers are fp32-accurate. Where student and teacher agree so closely that this shows, the sum of p - t tells by how much
  // log p is off, and the comparison runs once more: for all rows of a warp, since its threads exchange sums, but only such a row takes it.
  __device__ __forceinline__ Sums<4> compare(Known known) {
    Sums<4> sums{};
    bool again = true;
#pragma unroll 1
    for (int attempt = 0; attempt < 2 && __any_sync(0xffffffffu, again); ++attempt) {
      Sums<4> better{};
      for_row(!Way::kHeld, [&](const auto& span) { add_agreement(z, zt, span, known, better); });
      better = sum_lanes<Way::kThreads>(better, 1 << job.shift);
      if (again) sums = better;
      again = again && known.ds_sq(sums) < 0.01 * sums.at[kDifferenceSq];
      known.shift += log1pf(static_cast<float>(sums.at[kDifference]));
    }
    return sums;
  }

  // |p - y| cancels wherever the model has learned y, so this is done in fp64: the normaliser anew, then the distance.
  __device__ __forceinline__ double soft_distance(double top) {
    double total = 0, square = 0;
    for_row(!Way::kHeld, [&](const auto& span) { for_tile(span, [&](int k, int j) { total += exp(z.at[k][j] - top); }); });
    const double to_p = 1 / sum_lanes<Way::kThreads>(total, 1 << job.shift);
    for_row(!Way::kHeld, [&](const auto& span) {
      for_tile(span, [&](int k, int j) {
        forget(z.at[k][j]);
        const double error = exp(z.at[k][j] - top) * to_p - y.at[k][j];
        square += error * error;
      });
    });
    return sqrt(sum_lanes<Way::kThreads>(square, 1 << job.shift));
  }
};

// sqrt, and 0 for what is negative by rounding; NaN stays.
__device__ __forceinline__ float root(double square) { return square < 0 ? 0.0f : sqrtf(static_cast<float>(square)); }

// What the sums tell, but for `correct` of soft targets.
__device__ __forceinline__ void store_sums(const Job& job, int64_t i, const Student& student, const Teacher& teacher,
                                           const SoftTarget& soft) {
  const float total = static_cast<float>(student.total()), log_total = log1pf(static_cast<float>(student.rest()));
  job.entropy[i] = log_total - static_cast<float>(student.sums.at[kWeighted]) / total;
  job.confidence[i] = 1.0f / total;
  job.margin[i] = -expm1f(student.largest.second - student.largest.top) / total;
  if (job.targets) {
    const int64_t target = job.targets[i];
    const bool exists = target >= 0 && target < job.classes;
    const float logit = exists ? load_one(job.logits, i, target) : kNaN;
    job.loss[i] = log_total - (logit - student.largest.top);
    job.evs[i] = static_cast<float>(error_norm(student, logit));
    job.correct[i] = exists && target == student.largest.place && total == total;
  }
  if (job.soft.data) job.loss[i] = static_cast<float>(log_total * soft.sums.at[0] - soft.sums.at[1]);
  if (job.teacher.data) job.kd[i] = log_total - static_cast<float>(teacher.sums.at[kCross] / teacher.total());
}

// Blocks count as groups of rows. Threads behind the last row work on it too, since the others count on them, but store nothing.
template <class Way>
__global__ void __launch_bounds__(Way::kThreads, Way::kBlocks) scores_kernel(const __grid_constant__ Job job, int64_t first) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread & ((1 << job.shift) - 1);
  const int64_t i = (first + blockIdx.x) * (Way::kThreads >> job.shift) + (thread >> job.shift);
  const bool stores = lane == 0 && i < job.rows;
  Row<Way> row(job, i < job.rows ? i : job.rows - 1, lane);
  Student student;
  Teacher teacher;
  SoftTarget soft;
  row.sum(student, teacher, soft);
  if (stores) store_sums(job, i, student, teacher, soft);
  if (!Way::kSoft && !job.teacher.data) return;
  const Known known(student, teacher);
  const int64_t prediction = student.largest.place;
  if (job.teacher.data) {
    const Sums<4> sums = row.compare(known);
    if (stores) {
      job.ds[i] = root(known.ds_sq(sums));
      job.res[i] = sums.at[kDivergence] < 0 ? 0.0f : static_cast<float>(sums.at[kDivergence]);
    }
  }
  if constexpr (Way::kSoft) {
    const double evs = row.soft_distance(known.to_p.top) + 0 * soft.sums.at[0];  // NaN stays
    if (stores) {
      job.evs[i] = static_cast<float>(evs);
      job.correct[i] = soft.largest.place == prediction && evs == evs;
    }
  }
}

}  // namespace fastqat::logits
