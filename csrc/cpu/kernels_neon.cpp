// The kernels compiled for Advanced SIMD, which every 64-bit ARM processor has. DEEPREP_NEON, set
// in CMakeLists.txt, says so in place of the compiler's own macros: those are set for
// kernels_generic.cpp too, which stays portable.
#include <arm_neon.h>

#include "cpu/kernels.h"

namespace deeprep::neon {
constexpr int kVectorBytes = 16;
#include "cpu/kernels.inl"
}  // namespace deeprep::neon
