// The kernels compiled for avx2; the flags are set in CMakeLists.txt.
#include "cpu/kernels.h"

namespace deeprep::avx2 {
#include "cpu/kernels.inl"
}  // namespace deeprep::avx2
