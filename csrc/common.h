// What every CPU kernel shares: instruction-set levels, storage types, fixed partitions for sums that do not depend on threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>

namespace fastqat {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Loops are compiled once per level (see cpu/levels.h) and chosen at run time; all levels give the same bits, but for the
// products of gemm_tile.h, which only AVX2 and AVX-512 fuse.
enum class Level { baseline, avx2, avx512 };

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTQAT_X86_LEVELS 1
#else
#define FASTQAT_X86_LEVELS 0
#endif

Level cpu_level();                     // the best level of this CPU, or what set_cpu_level / FASTQAT_CPU_LEVEL says
void set_cpu_level(const char* name);  // throws for a level that is unknown or that this CPU lacks
const char* level_name(Level level);
std::string compiled_levels();

// Number of equal accumulator lanes in every sum: one AVX-512 register, two of AVX2, four of SSE or NEON.
constexpr int kLanes = 16;
// Elements of one task; the partition depends on the shape only.
constexpr int64_t kChunk = 16384;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline const float* optional_data(const std::optional<Tensor>& t) { return t.has_value() ? data<const float>(*t) : nullptr; }

// Storage types. They are plain bits here; load and store live in cpu/storage.h and compile for every level.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

}  // namespace fastqat
