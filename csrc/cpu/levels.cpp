#include "levels.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastqat {
namespace {

constexpr Level kLevels[] = {Level::avx512, Level::avx2, Level::baseline};

bool supported(Level level) {
#if FASTQAT_X86_LEVELS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (level == Level::avx2) return avx2;
  if (level == Level::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return level == Level::baseline;
}

Level parse(const char* name) {
  for (Level level : kLevels) {
    if (std::strcmp(name, level_name(level)) != 0) continue;
    STD_TORCH_CHECK(supported(level), "this CPU has no ", name, "; choose one of ", compiled_levels());
    return level;
  }
  STD_TORCH_CHECK(false, "unknown CPU level '", name, "'; choose one of ", compiled_levels());
}

Level detect() {
  if (const char* name = std::getenv("FASTQAT_CPU_LEVEL"); name && *name) return parse(name);
  for (Level level : kLevels)
    if (supported(level)) return level;
  return Level::baseline;
}

std::atomic<Level>& current() {
  static std::atomic<Level> level{detect()};
  return level;
}

}  // namespace

Level cpu_level() { return current().load(std::memory_order_relaxed); }

void set_cpu_level(const char* name) { current().store(parse(name), std::memory_order_relaxed); }

const char* level_name(Level level) { return level == Level::avx512 ? "avx512" : level == Level::avx2 ? "avx2" : "baseline"; }

std::string compiled_levels() {
#if FASTQAT_X86_LEVELS
  return "avx512 avx2 baseline";
#else
  return "baseline";
#endif
}

}  // namespace fastqat
