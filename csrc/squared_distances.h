// out[k] = sum_j (points[k, j] - center[j])^2, float64: of class means, what Tr Sigma_B and their
// norms are made of, in one pass over the K x d points and without a copy of them.
#pragma once

#include <cstdint>

namespace deeprep {

// points: K x d, contiguous; center: d, or null for zero; out: K. The same bits for any number of
// threads, any instruction set and on any device.
void squared_distances(const double* points, const double* center, double* out, int64_t num_points,
                       int64_t num_columns, int num_threads);

}  // namespace deeprep
