// The fused multiply-add of the portable kernels, which many processors' portable code has to make
// of other operations.
#pragma once

namespace deeprep::testing {

// Ends the process where a result is not the C library's.
void check_fused_multiply_add();

}  // namespace deeprep::testing
