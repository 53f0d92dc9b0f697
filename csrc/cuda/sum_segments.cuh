// The fused pass where segments are many: every feature is loaded once, and leaves as the moments
// of its segment.
//
// Parallel axis: (segment, strip of 128 columns). A team of threads, a warp for 128 columns, owns
// one and walks its chunks: groups of eight gathered rows, all eight loads of a thread in flight, t
// and q in registers; each chunk merges in float64 into a mean and a sum of squares that stay in
// registers too. The numbers of the next eight rows are asked for before those in flight are
// needed, across chunks and blocks, so that they add nothing to a round. Teams never wait for each
// other: no shared memory, no barrier, no atomic. Short rows make small teams, several to a warp;
// long rows and long classes make many. Where there are too few of them for the chip,
// sum_chunks.cuh takes over. The order of operations is that of plan.h and moments.h, so the bits
// are the CPU's.
#pragma once

#include "cuda/segment_moments.cuh"

namespace deeprep::cuda {

// Sums of a chunk, by column.
template <FeatureType kType>
struct ChunkSums {
  using Accumulator = typename Element<kType>::Accumulator;
  Accumulator pivot[kVector];
  Accumulator t[kVector];
  Accumulator q[kVector];

  __device__ __forceinline__ void add(const RowGroup<kType>& group, bool is_first) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (is_first) {
        pivot[e] = group.rows[0].value(e);
        t[e] = q[e] = 0;
      }
      Accumulator group_t;
      Accumulator group_q;
      group.sum(e, pivot[e], group_t, group_q);
      t[e] += group_t;
      q[e] += group_q;
    }
  }

  // Whether the team must sum the strip again in double.
  template <typename AnyTeam>
  __device__ __forceinline__ bool needs_double(const AnyTeam& team, int num_rows) const {
    if constexpr (sizeof(Accumulator) == sizeof(float)) {
      if (num_rows == 1) return false;
      float q_sum[kVector];
      float t2_sum[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        q_sum[e] = q[e];
        t2_sum[e] = t[e] * t[e];
      }
      return cannot_trust(check_sum(team, q_sum), check_sum(team, t2_sum), num_rows);
    } else {
      return false;
    }
  }
};

// Merges a chunk into its segment.
template <FeatureType kType, bool kAligned, typename AnyTeam>
__device__ __forceinline__ void close_chunk(const AnyTeam& team,
                                            const ThreadColumns<kAligned>& columns,
                                            const uint32_t* rows, const Chunk& chunk,
                                            const ChunkSums<kType>& sums, StripMoments& moments) {
  const bool in_double = sums.needs_double(team, chunk.num_rows);
  const double inverse_rows = 1.0 / static_cast<double>(chunk.num_rows);
  double mean[kVector];
  double within[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    double t = sums.t[e];
    double q = sums.q[e];
    if (in_double && e < columns.count) {
      sum_column_in_double<kType>(columns, rows, chunk.begin, chunk.num_rows, e, t, q);
    }
    mean[e] = chunk_mean(static_cast<double>(sums.pivot[e]), t, inverse_rows);
    within[e] = chunk_sumsq(q, t, inverse_rows);
  }
  const double sumsq = sum_strip(team, within);
  moments.growth +=
      sumsq + merge_mean(team, mean, chunk.num_rows, moments.n, moments.mean, columns.count);
  moments.n += chunk.num_rows;
}

// Threads of a block. A multiprocessor holds as many warps as its registers allow: small blocks
// leave fewer of them over, and end sooner.
constexpr int kSegmentThreads = 64;

// Such blocks that share a multiprocessor: as many as leave each thread the registers that it
// needs, from the table in resources.md.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kResidentFloat32 = 6;
#else
constexpr int kResidentFloat32 = 8;
#endif
template <FeatureType kType, bool kAligned>
constexpr int kResidentSegments = kType == FeatureType::kFloat64   ? 4
                                  : kType == FeatureType::kFloat32 ? kResidentFloat32
                                  : kAligned                       ? 8
                                                                   : 6;

template <FeatureType kType, bool kAligned, typename AnyTeam>
__device__ __forceinline__ void sum_segments_of(const Batch& batch, const AnyTeam& team) {
  const int64_t num_strips = batch.plan.num_strips;
  const uint32_t* rows = batch.scratch.sorted_rows;
  int64_t item = thread_index() / team.size;

  simt::wait_for_previous_kernel();
  // Nothing waits for another load that can do without: a team looks its segment up before it is
  // known whether there are so many.
  Segment segment = segment_of(batch, item / num_strips);
  const int64_t* num_segments =
      batch.scratch.first_segment + batch.state.num_classes * batch.plan.num_groups;
  int64_t num_items = *num_segments * num_strips;
  if (has_bad_label(batch)) return;
  while (item < num_items) {
    const int64_t s = item / num_strips;
    const int64_t strip = item - s * num_strips;
    const ThreadColumns<kAligned> columns(batch.features, column_of(strip, team.rank * kVector));
    expect_to_leave(batch, team, segment, strip);
    StripMoments moments = {};
    ChunkWalk walk(batch, team, segment, nullptr);
    Chunk chunk = walk.next();
    RowNumbers numbers;
    numbers.load(rows, chunk.begin, 0, chunk.num_rows);
    while (chunk.num_rows > 0) {
      ChunkSums<kType> sums;
      Chunk next = {0, 0, 0};
      for (int i = 0; i < chunk.num_rows; i += kGroupRows) {
        RowGroup<kType> group;
        group.load(columns, numbers);
        if (i + kGroupRows < chunk.num_rows) {
          numbers.load(rows, chunk.begin, i + kGroupRows, chunk.num_rows);
        } else {
          next = walk.next();
          if (next.num_rows > 0) numbers.load(rows, next.begin, 0, next.num_rows);
        }
        sums.add(group, i == 0);
      }
      if (columns.count == 0) sums = {};
      close_chunk(team, columns, rows, chunk, sums, moments);
      chunk = next;
    }
    leave_segment(batch, team, s, segment, strip, moments);
    item += num_threads() / team.size;
    num_items = *num_segments * num_strips;  // again: rows need the registers
    if (item < num_items) segment = segment_of(batch, item / num_strips);
  }
}

template <FeatureType kType, bool kAligned>
__global__ void __launch_bounds__(kSegmentThreads, (kResidentSegments<kType, kAligned>))
    sum_segments(Batch batch, int team_size) {
  with_team(team_size, [&](const auto& team) { sum_segments_of<kType, kAligned>(batch, team); });
}

}  // namespace deeprep::cuda
