// The merge arithmetic of class moments: four formulas, one header, host and device.
//
// A chunk is at most kChunkRows rows of one class. With its first row p as pivot, a kernel
// accumulates per column, in float32 (float64 for float64 features) and in a fixed order,
//
//     t = sum_i (x_i - p),    q = sum_i (x_i - p)^2
//
// and from there on everything is float64:
//
//     mean = p + t / m,       M2 = q - t^2 / m
//
// Because p is one of the m rows, M2 >= q / m: the subtraction loses at most a factor m, whatever
// the data. Where it would lose more than a factor 8 in float32 (the pivot is an outlier) the chunk
// is summed once more in double, so M2 is good to a few 1e-7, and to 1e-5 in the worst case. Chunks
// are merged by the update of Chan, Golub, LeVeque (1979): every term is >= 0, nothing cancels
// again.
//
// Every function is `static`: each instruction set's translation unit keeps its own copy, so the
// linker can never hand AVX-512 code to a machine without it.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DEEPREP_HOST_DEVICE __host__ __device__
#else
#define DEEPREP_HOST_DEVICE
#endif

namespace deeprep {

constexpr int64_t kChunkRows = 64;

// Columns are summed in kLanes interleaved partial sums (lane = column mod kLanes), folded by
// fold_lanes: the one order of summation that every vector width can follow exactly.
constexpr int kLanes = 8;

// A column tile is what one pass over a chunk holds in the first-level cache; the lanes of every
// tile are folded on their own, so the tile width is part of the definition of the result.
constexpr int64_t kTileColumns = 1024;

// Value is double, or a vector of doubles.
template <typename Value>
DEEPREP_HOST_DEVICE static inline Value chunk_mean(Value pivot, Value t, double inverse_rows) {
  return pivot + t * inverse_rows;
}

// Rounding can leave a tiny negative; a NaN must stay a NaN.
template <typename Value>
DEEPREP_HOST_DEVICE static inline Value chunk_sumsq(Value q, Value t, double inverse_rows) {
  const Value m2 = q - t * t * inverse_rows;
  return m2 < 0.0 ? Value{} : m2;
}

// Weights of merging m samples into n: the mean moves by mean_weight * delta, the sum of squares
// grows by sumsq_weight * delta^2.
struct MergeWeights {
  double mean_weight;   // m / (n + m)
  double sumsq_weight;  // n m / (n + m)
};

DEEPREP_HOST_DEVICE static inline MergeWeights merge_weights(int64_t n, int64_t m) {
  const double total = static_cast<double>(n) + static_cast<double>(m);
  const double mean_weight = static_cast<double>(m) / total;
  return {mean_weight, static_cast<double>(n) * mean_weight};
}

DEEPREP_HOST_DEVICE static inline double fold_lanes(const double* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace deeprep
