#include "affine_loops.h"

#include <cstring>
#include <utility>

#include "storage.h"
#include "vec_math.h"

namespace fastqat {
namespace {

#define FASTQAT_UNROLLED _Pragma("GCC unroll 16")
#define FASTQAT_INNER FASTQAT_TARGET FASTQAT_INLINE

constexpr int64_t kRun = 32 * kLanes;  // elements of a row that are summed in fp32

#define FASTQAT_TARGET
#define FASTQAT_WIDTH 4
namespace baseline {
#include "affine_level_columns.h"
}  // namespace baseline
#undef FASTQAT_TARGET
#undef FASTQAT_WIDTH

#if FASTQAT_X86_LEVELS
#define FASTQAT_TARGET FASTQAT_TARGET_AVX2
#define FASTQAT_WIDTH 8
namespace avx2 {
#include "affine_level_columns.h"
}  // namespace avx2
#undef FASTQAT_TARGET
#undef FASTQAT_WIDTH

#define FASTQAT_TARGET FASTQAT_TARGET_AVX512
#define FASTQAT_WIDTH 16
namespace avx512 {
#include "affine_level_columns.h"
}  // namespace avx512
#undef FASTQAT_TARGET
#undef FASTQAT_WIDTH
#endif

template <class T>
const AffineLoops& loops_at_level() {
#if FASTQAT_X86_LEVELS
  if (cpu_level() == Level::avx512) return avx512::kLoops<T>;
  if (cpu_level() == Level::avx2) return avx2::kLoops<T>;
#endif
  return baseline::kLoops<T>;
}

}  // namespace

const AffineLoops& affine_loops(ScalarType type) {
  if (type == ScalarType::Float) return loops_at_level<float>();
  return type == ScalarType::BFloat16 ? loops_at_level<bf16>() : loops_at_level<fp16>();
}

}  // namespace fastqat
