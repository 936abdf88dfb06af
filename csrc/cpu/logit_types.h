// Rows of logits in memory and in scratch, and what is summed over them.
#pragma once

#include "../common.h"

namespace fastqat {

// Groups of kLanes that are summed in fp32 before they are added to fp64 lanes.
constexpr int64_t kFewGroups = 4, kGroups = 32;

struct LogitMatrix {
  const char* data;  // null: not given
  int64_t row_bytes, item_bytes;
  ScalarType type;
  const char* row(int64_t i) const { return data + i * row_bytes; }
  int64_t group_bytes() const { return kLanes * item_bytes; }
};

inline LogitMatrix as_matrix(const Tensor& t) {
  const int64_t item_bytes = t.scalar_type() == ScalarType::Float ? 4 : 2;
  return {static_cast<const char*>(t.data_ptr()), t.stride(0) * item_bytes, item_bytes, t.scalar_type()};
}

struct LogitRow {
  float* logits;  // [groups * kLanes], see padding
  float* exps;    // e_j = exp(z_j - top)
  float top, second;
};

struct StudentParts {
  double rest, rest_sq;  // sums of e_j and e_j^2 over the classes below the top
  double weighted;       // sum of e_j (z_j - top) <= 0
};

struct TeacherSums {
  double total;  // sum of e_j of the teacher
  double cross;  // sum of e_j of the teacher times (z_j - top) of the student
  double apart;  // sum of e_j of the student times what its (z_j - top) has more
                 // than that of the teacher
};

}  // namespace fastqat
