// The kernels compiled for AVX-512 (F, BW, DQ, VL); the flags are set in CMakeLists.txt.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace deeprep::avx512 {
constexpr int kVectorBytes = 64;
#include "cpu/kernels.inl"
}  // namespace deeprep::avx512
