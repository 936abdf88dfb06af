// x_hat: one pass over x.
#include "fake_quant_loops.h"

namespace fastqat {
namespace {

template <class T, bool kReciprocal, class RangeAt>
FASTQAT_INLINE uint32_t quantized_word(uint32_t x, int64_t i, const RangeAt& range) {
  using P = Packing<T>;
  const float low = fake_quant<kReciprocal>(P::low(x), range(i, 0));
  return P::join(low, P::kPerWord == 1 ? 0.0f : fake_quant<kReciprocal>(P::high(x), range(i, P::kPerWord - 1)));
}

template <class T, bool kReciprocal>
struct ForwardBody {
  static constexpr int kPerWord = Packing<T>::kPerWord;
  const Job& job;
  template <class RangeAt>
  FASTQAT_INLINE void operator()(int64_t offset, int64_t n, const RangeAt& range) const {
    const void* const x = static_cast<const T*>(job.x) + offset;
    void* const out = static_cast<T*>(job.out) + offset;
    const int64_t words = n / kPerWord;
#pragma GCC ivdep
    for (int64_t i = 0; i < words; ++i) store_word(out, i, quantized_word<T, kReciprocal>(load_word(x, i), i, range));
    if (n % kPerWord) store_half(out, words, quantized_word<T, kReciprocal>(load_half(x, words), words, range));
  }
};

FASTQAT_INLINE void forward(const Job& job, int64_t begin, int64_t end){
#define FASTQAT_FORWARD(T, R) for_each_run<R>(job, begin, end, ForwardBody<T, R>{job})
    FASTQAT_BY_TYPE(FASTQAT_FORWARD)}

FASTQAT_LEVELS(forward)

}  // namespace

Loops forward_loops() { return FASTQAT_AT_LEVEL(forward); }

}  // namespace fastqat
