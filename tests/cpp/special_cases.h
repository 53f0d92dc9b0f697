// Batches at the edges of what class_moments takes; each check ends the process if it fails.
#pragma once

namespace deeprep::testing {

void check_bad_labels();
void check_nonfinite();
void check_zero_stride();
void check_huge_strides();
void check_huge_matrix();
void check_most_classes();
void check_kept_scratch();
void check_concurrent_callers();

}  // namespace deeprep::testing
