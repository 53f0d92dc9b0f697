#include "cpu/simd.h"

#include <atomic>

namespace deeprep {
namespace {

struct Level {
  const char* name;
  const Kernels* kernels;
};

std::vector<Level> runnable_levels() {
  std::vector<Level> levels = {{"generic", &generic::kKernels}};
#ifdef DEEPREP_X86_KERNELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    levels.push_back({"avx2", &avx2::kKernels});
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    levels.push_back({"avx512", &avx512::kKernels});
  }
#endif
#ifdef DEEPREP_ARM_KERNELS
  levels.push_back({"neon", &neon::kKernels});
#endif
  return levels;
}

const std::vector<Level>& levels() {
  static const std::vector<Level> found = runnable_levels();
  return found;
}

std::atomic<const Level*>& active() {
  static std::atomic<const Level*> level{&levels().back()};
  return level;
}

}  // namespace

std::vector<std::string> available_simd_levels() {
  std::vector<std::string> names;
  for (const Level& level : levels()) names.emplace_back(level.name);
  return names;
}

std::string simd_level() { return active().load()->name; }

bool set_simd_level(const std::string& name) {
  for (const Level& level : levels()) {
    if (name == level.name) {
      active().store(&level);
      return true;
    }
  }
  return false;
}

const Kernels& active_kernels() { return *active().load()->kernels; }

}  // namespace deeprep
