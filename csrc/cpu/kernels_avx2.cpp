// The kernels compiled for AVX2 with F16C; the flags are set in CMakeLists.txt.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace deeprep::avx2 {
constexpr int kVectorBytes = 32;
#include "cpu/kernels.inl"
}  // namespace deeprep::avx2
