// The arithmetic of class moments, one header for host and device.
//
// A chunk is at most kChunkRows rows of one class. With its first row p as pivot, a kernel
// accumulates per column, in float32 (float64 for float64 features),
//
//     t = sum_i d_i,    q = sum_i d_i^2,    d_i = x_i - p,
//
// kGroupRows rows at a time: the rows of a group one after the other, t += d and q = fma(d, d, q),
// both from zero; then group after group. From there on everything is float64:
//
//     mean = p + t / m,       M2 = q - t^2 / m
//
// Because p is one of the m rows, M2 >= q / m: the subtraction loses at most a factor m, whatever
// the data. Where it would lose more than a factor 8 in float32 (the pivot is an outlier) those
// columns are summed once more in double, so M2 is good to a few 1e-7, and to 1e-5 in the worst
// case. Chunks are merged by the update of Chan, Golub, LeVeque (1979): every term is >= 0, nothing
// cancels again.
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
constexpr int kGroupRows = 8;

// Columns are summed strip by strip, in trees that every vector width, and a warp, can follow
// exactly. Octet o holds columns 8 o to 8 o + 7 of the strip. Neighbouring octets are added pair by
// pair, the eight columns each on their own, as if the strip were padded with zeros; then
// columns four, two and one apart are added. A warp holds one strip.
constexpr int64_t kStripColumns = 128;
constexpr int kLanes = 8;

// What a merge makes the sum of squares grow by is summed strip by strip: what is within the chunk,
// and, where there were rows before, the distance of the means; each over the columns, then both.

// Whether the float32 sums of a chunk can be trusted is decided strip by strip, by such trees over
// kCheckLanes interleaved columns.
constexpr int kCheckLanes = 16;

// Chunks of a class join into a segment until it holds so many rows: what one worker sums alone
// however uneven the classes are.
constexpr int64_t kSegmentRows = 1024;

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

// What is not a number leaves as one NaN: which sign and payload come out of an operation on two
// NaNs depends on the order of its operands, which compilers choose, and on the processor.
DEEPREP_HOST_DEVICE static inline double unify_nan(double value) {
  return value == value ? value : __builtin_nan("");
}

// A class's means need unify_nan() only where its sum of squares is not finite: to get to a mean, a
// NaN goes through a difference that is NaN or infinite, whose square stays in the sum.
DEEPREP_HOST_DEVICE static inline bool is_finite(double value) { return value - value == 0; }

// Whether a strip of a chunk must be summed again in double, from q = sum_j q_j and
// t2 = sum_j t_j^2 in float32:
// - the pivot is an outlier: of q, less than an eighth is left after the subtraction t^2 / m, and
//   the rounding of q would be magnified by more than 8;
// - squares overflow (deviations above 1.8e19), or are so small that their lost bits count:
//   Q < 2^-80 is far above 2^24 * 8 * kChunkRows * kStripColumns * 2^-126. Constant columns too.
DEEPREP_HOST_DEVICE static inline bool cannot_trust(float q, float t2, int64_t num_rows) {
  const float m2 = q - t2 / static_cast<float>(num_rows);
  return !(m2 >= 0.125f * q && q >= 0x1p-80f && q <= 0x1.fffffep127f);
}

}  // namespace deeprep
