// Which of the compiled instruction sets is in use: the best this machine has, or the one named by
// the environment variable DEEPREP_SIMD (generic, avx2, avx512, neon).
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace deeprep {

// Names of the levels that this build holds and this machine can run, worst first.
std::vector<std::string> available_simd_levels();

std::string simd_level();

// False, and no change, where `name` is not among available_simd_levels().
bool set_simd_level(const std::string& name);

const Kernels& active_kernels();

}  // namespace deeprep
