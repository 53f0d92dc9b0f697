// out[k] = sum_j (means[k, j] - center[j])^2, float64: what Tr Sigma_B and the norms of class means
// are made of, in one pass over the K x d means and without a copy of them.
#pragma once

#include <cstdint>

namespace deeprep {

// means: K x d, contiguous; center: d, or null for zero; out: K. The same bits for any number of
// threads, any instruction set and on any device.
void squared_distances(const double* means, const double* center, double* out, int64_t num_classes,
                       int64_t num_columns, int num_threads);

}  // namespace deeprep
