// Sums over the columns of a strip by the threads that share it, in the order of moments.h.
//
// A team of 1, 2, 4, ... 32 threads holds kVector neighbouring columns each; columns beyond the
// strip are zeros. Shuffles give every thread of the team the same sum.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/segments.cuh"

namespace deeprep::cuda {

struct Team {
  int size;       // threads, a power of two
  int rank;       // of this thread
  unsigned mask;  // lanes of the warp

  __device__ static Team of_this_thread(int size) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
    const int rank = lane % size;
    const unsigned ones = size == kWarpThreads ? ~0u : (1u << size) - 1;
    return {size, rank, ones << (lane - rank)};
  }
};

// A warp as a team: what is known when the kernels are compiled costs nothing when they run, and
// most features are wide enough for it.
struct WarpTeam {
  static constexpr int size = kWarpThreads;
  static constexpr unsigned mask = ~0u;
  int rank;
};

// Calls work with the team that this thread is in.
template <typename Work>
__device__ __forceinline__ void with_team(int size, Work&& work) {
  if (size == kWarpThreads) {
    work(WarpTeam{static_cast<int>(threadIdx.x) % kWarpThreads});
  } else {
    work(Team::of_this_thread(size));
  }
}

// Threads that share a strip of d columns.
constexpr int team_size(int64_t num_columns) {
  int size = 1;
  while (size * kVector < num_columns && size * kVector < kStripColumns) size *= 2;
  return size;
}

// Adds to every column the one kWidth columns on, and so on, pair by pair, until kWidth are left.
template <int kWidth, typename AnyTeam, typename Value>
__device__ __forceinline__ void add_neighbours(const AnyTeam& team, Value (&values)[kVector]) {
#pragma unroll
  for (int step = kWidth / kVector; step < team.size; step *= 2) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) values[e] += __shfl_xor_sync(team.mask, values[e], step);
  }
}

// Adds columns kHalf apart.
template <int kHalf, typename AnyTeam, typename Value>
__device__ __forceinline__ void fold_half(const AnyTeam& team, Value (&values)[kVector]) {
  if (kHalf < kVector) {
#pragma unroll
    for (int e = 0; e < kHalf && e + kHalf < kVector; ++e) values[e] += values[e + kHalf];
  } else if (kHalf / kVector < team.size) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      values[e] += __shfl_xor_sync(team.mask, values[e], kHalf / kVector);
    }
  }
}

// Adds to values that of the thread `step` away, by halves: of kCount values a thread keeps the
// first half or, if its rank has that bit, the second, and hands over the other one. Sums over a
// strip go on with fewer and fewer of them: a shuffle costs as much as an addition, two of them in
// float64.
template <int kCount, typename AnyTeam, typename Value, int kSize>
__device__ __forceinline__ void add_and_halve(const AnyTeam& team, Value (&values)[kSize],
                                              int step) {
  const bool keeps_second = (team.rank & step) != 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const Value kept = keeps_second ? values[i + kCount / 2] : values[i];
    const Value given = keeps_second ? values[i] : values[i + kCount / 2];
    values[i] = kept + __shfl_xor_sync(team.mask, given, step);
  }
}

template <typename AnyTeam, typename Value>
__device__ __forceinline__ Value add_across(const AnyTeam& team, Value value, int step) {
  return value + __shfl_xor_sync(team.mask, value, step);
}

// Teams that are large enough to halve kVector values twice, those of a strip and, for the checks,
// of two; smaller ones add all of them.
constexpr int kHalvingTeam = 4 * kLanes / kVector;
constexpr int kHalvingCheckTeam = 4 * kCheckLanes / kVector;

// Sum of float64 values over a strip; overwrites them.
template <typename AnyTeam>
__device__ __forceinline__ double sum_strip(const AnyTeam& team, double (&values)[kVector]) {
  constexpr int kStep = kLanes / kVector;
  if (team.size >= kHalvingTeam) {
    add_and_halve<4>(team, values, kStep);
    add_and_halve<2>(team, values, 2 * kStep);
    double sum = values[0];
    for (int step = 4 * kStep; step < team.size; step *= 2) sum = add_across(team, sum, step);
    // Columns four, two and one apart, where the halving has left them.
    sum = add_across(team, sum, 1);
    sum = add_across(team, sum, kStep);
    return add_across(team, sum, 2 * kStep);
  }
  add_neighbours<kLanes>(team, values);
  fold_half<4>(team, values);
  fold_half<2>(team, values);
  return values[0] + values[1];
}

// Strips of float64 values that are summed together.
constexpr int kStripsAtOnce = 4;

// Sums of values over so many strips, kVector of each one after the other; overwrites the values.
// By kHalvingTeam threads or more.
template <typename AnyTeam>
__device__ __forceinline__ void sum_strips(const AnyTeam& team,
                                           double (&values)[kStripsAtOnce * kVector],
                                           double (&sums)[kStripsAtOnce]) {
  constexpr int kStep = kLanes / kVector;
  // Whole strips are handed over, until each thread has one.
  add_and_halve<4 * kVector>(team, values, kStep);
  add_and_halve<2 * kVector>(team, values, 2 * kStep);
  double own[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) own[e] = values[e];
  for (int step = 4 * kStep; step < team.size; step *= 2) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) own[e] = add_across(team, own[e], step);
  }
  fold_half<4>(team, own);
  fold_half<2>(team, own);
  const double sum = own[0] + own[1];
#pragma unroll
  for (int i = 0; i < kStripsAtOnce; ++i) {
    const int rank = (i / 2 + i % 2 * 2) * kStep;
    sums[i] = __shfl_sync(team.mask, sum, rank, team.size);
  }
}

// Sums of float32 values over a strip, for cannot_trust(); overwrites the values.
template <typename AnyTeam>
__device__ __forceinline__ float check_sum(const AnyTeam& team, float (&values)[kVector]) {
  add_neighbours<kCheckLanes>(team, values);
  fold_half<8>(team, values);
  fold_half<4>(team, values);
  fold_half<2>(team, values);
  return values[0] + values[1];
}

struct CheckSums {
  float q;
  float t2;
};

template <typename AnyTeam>
__device__ __forceinline__ CheckSums check_sums(const AnyTeam& team, float (&q)[kVector],
                                                float (&t2)[kVector]) {
  constexpr int kStep = kCheckLanes / kVector;
  if (team.size < kHalvingCheckTeam) return {check_sum(team, q), check_sum(team, t2)};
  float both[2 * kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    both[e] = q[e];
    both[kVector + e] = t2[e];
  }
  add_and_halve<8>(team, both, kStep);  // q or t2
  add_and_halve<4>(team, both, 2 * kStep);
  for (int step = 4 * kStep; step < team.size; step *= 2) {
    both[0] = add_across(team, both[0], step);
    both[1] = add_across(team, both[1], step);
  }
  // Columns eight, four, two and one apart, where the halving has left them.
  add_and_halve<2>(team, both, 2);
  float sum = add_across(team, both[0], 1);
  sum = add_across(team, sum, 2 * kStep);
  sum = add_across(team, sum, 2);
  const float other = __shfl_xor_sync(team.mask, sum, kStep);
  const bool has_t2 = (team.rank & kStep) != 0;
  return {has_t2 ? other : sum, has_t2 ? sum : other};
}

}  // namespace deeprep::cuda
