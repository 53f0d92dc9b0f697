// The kernels compiled for avx512; the flags are set in CMakeLists.txt.
#include "cpu/kernels.h"

namespace deeprep::avx512 {
#include "cpu/kernels.inl"
}  // namespace deeprep::avx512
