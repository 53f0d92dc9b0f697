// Merging the segments that waited into the state, and what is left to do once a class: counts and
// sums of squares.
#pragma once

#include "cuda/segment_moments.cuh"

namespace deeprep::cuda {

// Threads that share a strip of d columns where moments merge, see sum_strips().
constexpr int merge_team_size(int64_t num_columns) {
  const int size = team_size(num_columns);
  return size < kHalvingTeam ? kHalvingTeam : size;
}

// Merges the segments of a class that has several, in order, on the columns of a strip, by a team.
// What its sum of squares grows by is left where the growth of its first segment was.
template <typename AnyTeam>
__device__ __forceinline__ void merge_strip(const Batch& batch, const AnyTeam& team, int64_t k,
                                            int64_t strip) {
  const int64_t num_strips = batch.plan.num_strips;
  const int64_t first = first_segment_of(batch, k);
  const int64_t last = first_segment_of(batch, k + 1);
  if (last - first < 2) return;
  const int64_t column = column_of(strip, team.rank * kVector);
  const int count = count_columns(batch.features, column);
  double* state_mean = batch.state.means + k * batch.features.num_columns + column;
  double mean[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) mean[e] = e < count ? state_mean[e] : 0;
  int64_t n = batch.state.counts[k];
  double total = 0;
  for (int64_t base = first; base < last; base += kStripsAtOnce) {
    // Merges depend on each other, loads do not: ask for several before the first is needed.
    double others[kStripsAtOnce * kVector];
    double within[kStripsAtOnce];
    int rows[kStripsAtOnce];
#pragma unroll
    for (int i = 0; i < kStripsAtOnce; ++i) {
      const bool exists = base + i < last;
      const int64_t s = exists ? base + i : last - 1;
      const Segment segment = batch.scratch.segments[s];
      const double* waiting = batch.scratch.segment_means +
                              waiting_slot(batch, segment, s) * batch.features.num_columns + column;
      rows[i] = exists ? static_cast<int>(segment.num_rows) : 0;
      within[i] = team.rank == 0 ? batch.scratch.segment_growth[s * num_strips + strip] : 0;
#pragma unroll
      for (int e = 0; e < kVector; ++e) others[i * kVector + e] = e < count ? waiting[e] : 0;
    }
    double growths[kStripsAtOnce];
    merge_means(team, others, rows, n, mean, growths);
#pragma unroll
    for (int i = 0; i < kStripsAtOnce; ++i) {
      if (base + i >= last) break;
      total += within[i] + growths[i];
      n += rows[i];
    }
  }
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    if (e < count) state_mean[e] = mean[e];
  }
  if (team.rank == 0) batch.scratch.segment_growth[first * num_strips + strip] = total;
}

// Adds rows and growth to a class, by a warp.
__device__ __forceinline__ void add_class(const Batch& batch, int64_t k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t num_strips = batch.plan.num_strips;
  const int64_t first = first_segment_of(batch, k);
  const int64_t last = first_segment_of(batch, k + 1);
  if (first == last) return;
  // In order, like the CPU: each warp's load takes 32 strips, each addition one. Only lane 0
  // reads the sum that it is to write: no shuffle orders the one before the other.
  double sumsq = lane == 0 ? batch.state.sumsq[k] : 0;
  for (int64_t base = 0; base < num_strips; base += kWarpThreads) {
    const double mine = base + lane < num_strips
                            ? batch.scratch.segment_growth[first * num_strips + base + lane]
                            : 0;
    for (int i = 0; i < kWarpThreads && base + i < num_strips; ++i) {
      sumsq += __shfl_sync(~0u, mine, i);
    }
  }
  if (!is_finite(__shfl_sync(~0u, sumsq, 0))) {
    double* mean = batch.state.means + k * batch.features.num_columns;
    for (int64_t j = lane; j < batch.features.num_columns; j += kWarpThreads) {
      mean[j] = unify_nan(mean[j]);
    }
  }
  if (lane != 0) return;
  batch.state.sumsq[k] = unify_nan(sumsq);
  int64_t num_rows = 0;
  for (int64_t s = first; s < last; ++s) num_rows += batch.scratch.segments[s].num_rows;
  batch.state.counts[k] += num_rows;
}

// Parallel axis: (class, strip).
static __global__ void merge_segments(Batch batch, int team_size) {
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  const Team team = Team::of_this_thread(team_size);
  const int64_t num_strips = batch.plan.num_strips;
  const int64_t num_items = batch.state.num_classes * num_strips;
  for (int64_t item = thread_index() / team_size; item < num_items;
       item += num_threads() / team_size) {
    merge_strip(batch, team, item / num_strips, item % num_strips);
  }
}

// Parallel axis: classes, a warp each.
static __global__ void add_to_state(Batch batch) {
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  for (int64_t k = thread_index() / kWarpThreads; k < batch.state.num_classes;
       k += num_threads() / kWarpThreads) {
    add_class(batch, k);
  }
}

// Both in one kernel. Parallel axis: classes, a thread block each, whose teams take strips in turn.
static __global__ void merge_classes(Batch batch, int team_size) {
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  const Team team = Team::of_this_thread(team_size);
  const int num_teams = static_cast<int>(blockDim.x) / team_size;
  for (int64_t k = blockIdx.x; k < batch.state.num_classes; k += gridDim.x) {
    for (int64_t strip = static_cast<int>(threadIdx.x) / team_size; strip < batch.plan.num_strips;
         strip += num_teams) {
      merge_strip(batch, team, k, strip);
    }
    __syncthreads();
    if (threadIdx.x < kWarpThreads) add_class(batch, k);
  }
}

}  // namespace deeprep::cuda
