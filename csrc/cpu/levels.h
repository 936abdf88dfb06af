// Instruction-set levels: FASTQAT_LEVELS(f) defines f_baseline, f_avx2 and f_avx512 from the always-inlined body f, so that the
// compiler vectorises the same plain loops once per level, and FASTQAT_AT_LEVEL(f) is the one of the current level. FASTQAT_WIDE_LEVELS(f)
// does it for a template of the number of floats in a register.
#pragma once

#include "../common.h"

#define FASTQAT_DEFINE_LEVEL(f, body, level, attribute) \
  attribute void f##_##level(const Job& job, int64_t begin, int64_t end) { body(job, begin, end); }

#if FASTQAT_X86_LEVELS
#define FASTQAT_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define FASTQAT_TARGET_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#define FASTQAT_LEVELS(f)                               \
  FASTQAT_DEFINE_LEVEL(f, f, baseline, )                \
  FASTQAT_DEFINE_LEVEL(f, f, avx2, FASTQAT_TARGET_AVX2) \
  FASTQAT_DEFINE_LEVEL(f, f, avx512, FASTQAT_TARGET_AVX512)
#define FASTQAT_WIDE_LEVELS(f)                             \
  FASTQAT_DEFINE_LEVEL(f, f<4>, baseline, )                \
  FASTQAT_DEFINE_LEVEL(f, f<8>, avx2, FASTQAT_TARGET_AVX2) \
  FASTQAT_DEFINE_LEVEL(f, f<16>, avx512, FASTQAT_TARGET_AVX512)
#define FASTQAT_AT_LEVEL(f) (cpu_level() == Level::avx512 ? f##_avx512 : cpu_level() == Level::avx2 ? f##_avx2 : f##_baseline)
#else
#define FASTQAT_LEVELS(f) FASTQAT_DEFINE_LEVEL(f, f, baseline, )
#define FASTQAT_WIDE_LEVELS(f) FASTQAT_DEFINE_LEVEL(f, f<4>, baseline, )
#define FASTQAT_AT_LEVEL(f) f##_baseline
#endif
