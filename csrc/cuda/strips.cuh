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

// Sum of float64 values over a strip; overwrites them.
template <typename AnyTeam>
__device__ __forceinline__ double sum_strip(const AnyTeam& team, double (&values)[kVector]) {
  add_neighbours<kLanes>(team, values);
  fold_half<4>(team, values);
  fold_half<2>(team, values);
  return values[0] + values[1];
}

// Sum of float32 values over a strip, for cannot_trust(); overwrites them.
template <typename AnyTeam>
__device__ __forceinline__ float check_sum(const AnyTeam& team, float (&values)[kVector]) {
  add_neighbours<kCheckLanes>(team, values);
  fold_half<8>(team, values);
  fold_half<4>(team, values);
  fold_half<2>(team, values);
  return values[0] + values[1];
}

}  // namespace deeprep::cuda
