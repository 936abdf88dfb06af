// Codes: one pass over x, through a block of fp32 values and one of 32-bit codes in the first-level cache.
#include "fake_quant_loops.h"

namespace fastqat {
namespace {

template <class C>
FASTQAT_INLINE void narrow_codes(const int32_t* codes, int64_t n, void* out, int64_t offset) {
  for (int64_t i = 0; i < n; ++i) static_cast<C*>(out)[offset + i] = static_cast<C>(codes[i]);
}

template <class T, bool kReciprocal>
struct CodesBody {
  static constexpr int kPerWord = 1;
  const Job& job;
  template <class RangeAt>
  FASTQAT_INLINE void operator()(int64_t offset, int64_t n, const RangeAt& range) const {
    for (int64_t first = 0; first < n; first += kBlock) block(offset + first, at_most(n - first, kBlock), first, range);
  }

 private:
  template <class RangeAt>
  FASTQAT_INLINE void block(int64_t offset, int64_t n, int64_t first, const RangeAt& range) const {
    alignas(64) float in[kBlock];
    alignas(64) int32_t codes[kBlock];
    const float* const x = load_block(static_cast<const T*>(job.x) + offset, n, in);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int32_t>(code<kReciprocal>(x[i], range(first + i, 0)));
    switch (job.code_type) {
      case ScalarType::Char:
        return narrow_codes<int8_t>(codes, n, job.out, offset);
      case ScalarType::Byte:
        return narrow_codes<uint8_t>(codes, n, job.out, offset);
      case ScalarType::Short:
        return narrow_codes<int16_t>(codes, n, job.out, offset);
      default:
        return narrow_codes<int32_t>(codes, n, job.out, offset);
    }
  }
};

FASTQAT_INLINE void codes(const Job& job, int64_t begin, int64_t end){
#define FASTQAT_CODES(T, R) for_each_run<R>(job, begin, end, CodesBody<T, R>{job})
    FASTQAT_BY_TYPE(FASTQAT_CODES)}

FASTQAT_LEVELS(codes)

}  // namespace

Loops codes_loops() { return FASTQAT_AT_LEVEL(codes); }

}  // namespace fastqat
