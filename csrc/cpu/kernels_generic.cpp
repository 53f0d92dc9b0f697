// The kernels compiled for any machine; the flags are set in CMakeLists.txt.
#include "cpu/kernels.h"

namespace deeprep::generic {
constexpr int kVectorBytes = 16;
#include "cpu/kernels.inl"
}  // namespace deeprep::generic
