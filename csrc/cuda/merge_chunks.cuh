// Chunks that were summed side by side become segments.
//
// Parallel axis: (segment, strip), a team of threads each. Chunks merge into their segment one
// after the other, but their loads do not depend on each other: a team asks for several before it
// needs the first. Then the segments of a class merge as those of sum_segments do; so the longest
// chain is that of a segment, 17 chunks, and then that of a class, its segments, and not all chunks
// of a class.
#pragma once

#include "cuda/merge_segments.cuh"
#include "cuda/segment_moments.cuh"

namespace deeprep::cuda {

// Merges the chunks of segment s on a strip.
template <typename AnyTeam>
__device__ __forceinline__ void merge_chunks_of(const Batch& batch, const AnyTeam& team, int64_t s,
                                                int64_t strip) {
  const int64_t num_strips = batch.plan.num_strips;
  const Segment segment = batch.scratch.segments[s];
  const int64_t column = column_of(strip, team.rank * kVector);
  const int count = count_columns(batch.features, column);
  expect_to_leave(batch, team, segment, strip);
  StripMoments moments = {};
  ChunkWalk walk(batch, team, batch.scratch.first_chunk);
  walk.enter(segment);
  while (moments.n < static_cast<int>(segment.num_rows)) {
    double means[kStripsAtOnce * kVector];
    double sumsq[kStripsAtOnce];
    int rows[kStripsAtOnce];
#pragma unroll
    for (int i = 0; i < kStripsAtOnce; ++i) {
      const Chunk chunk = walk.next();
      const double* from =
          batch.scratch.chunk_means + int64_t{chunk.index} * batch.features.num_columns + column;
      rows[i] = chunk.num_rows;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        means[i * kVector + e] = rows[i] > 0 && e < count ? from[e] : 0;
      }
      sumsq[i] =
          rows[i] > 0 ? batch.scratch.chunk_sumsq[int64_t{chunk.index} * num_strips + strip] : 0;
    }
    double growths[kStripsAtOnce];
    merge_means(team, means, rows, moments.n, moments.mean, growths);
#pragma unroll
    for (int i = 0; i < kStripsAtOnce; ++i) {
      if (rows[i] == 0) break;
      moments.growth += sumsq[i] + growths[i];
      moments.n += rows[i];
    }
  }
  leave_segment(batch, team, s, segment, strip, moments);
}

static __global__ void merge_chunks(Batch batch, int team_size) {
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  const int64_t num_strips = batch.plan.num_strips;
  const int64_t num_items =
      batch.scratch.first_segment[batch.state.num_classes * batch.plan.num_groups] * num_strips;
  with_team(team_size, [&](const auto& team) {
    for (int64_t item = thread_index() / team.size; item < num_items;
         item += num_threads() / team.size) {
      merge_chunks_of(batch, team, item / num_strips, item % num_strips);
    }
  });
}

constexpr int kMergeThreads = 256;

// Parallel axis of the next: classes, a thread block each, whose teams take (segment, strip) and
// then strips in turn.
template <typename AnyTeam>
__device__ __forceinline__ void merge_class_chunks_of(const Batch& batch, const AnyTeam& team) {
  const int num_teams = static_cast<int>(blockDim.x) / team.size;
  const int first_item = static_cast<int>(threadIdx.x) / team.size;
  const int64_t num_strips = batch.plan.num_strips;
  for (int64_t k = blockIdx.x; k < batch.state.num_classes; k += gridDim.x) {
    const int64_t first = first_segment_of(batch, k);
    const int64_t num_items = (first_segment_of(batch, k + 1) - first) * num_strips;
    for (int64_t item = first_item; item < num_items; item += num_teams) {
      merge_chunks_of(batch, team, first + item / num_strips, item % num_strips);
    }
    __syncthreads();
    for (int64_t strip = first_item; strip < num_strips; strip += num_teams) {
      merge_strip(batch, team, k, strip);
    }
    __syncthreads();
    if (threadIdx.x < kWarpThreads) add_class(batch, k);
  }
}

// Chunks, segments and the state in one kernel, where a class has few of them.
static __global__ void __launch_bounds__(kMergeThreads, 1)
    merge_class_chunks(Batch batch, int team_size) {
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  with_team(team_size, [&](const auto& team) { merge_class_chunks_of(batch, team); });
}

}  // namespace deeprep::cuda
