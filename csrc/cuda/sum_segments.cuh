// The fused pass where segments are many: every feature is loaded once, and leaves as the moments
// of its segment.
//
// Parallel axis: (segment, strip of 128 columns). A team of threads, a warp for 128 columns, owns
// a strip of one segment, or of several one after the other, and walks their chunks: groups of
// eight gathered rows, all eight loads of a thread in flight, t and q in registers; each chunk
// merges in float64 into a mean and a sum of squares that stay in registers too. The numbers of the
// next eight rows are asked for before those in flight are needed, across chunks, blocks and
// segments, so that they add nothing to a round; and so is the descriptor of the next segment. So
// the way from a segment to its rows' numbers is waited for once a team, however short segments
// are. Teams never wait for each other: no shared memory, no barrier, no atomic. Short rows make
// small teams, several to a warp; long rows and long classes make many. How many segments share a
// team, and where there are too few for the chip, so that sum_chunks.cuh takes over, says
// chunk_path.h. The order of operations is that of plan.h and moments.h, so the bits are the CPU's.
//
// Features of the next segment are not asked for while a chunk closes: beside what closing takes
// their registers would leave 12 warps a multiprocessor in place of 16, or spill.
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
      const CheckSums sums = check_sums(team, q_sum, t2_sum);
      return cannot_trust(sums.q, sums.t2, num_rows);
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
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kResidentFloat64 = 4;
#else
constexpr int kResidentFloat64 = 6;
#endif
template <FeatureType kType, bool kAligned>
constexpr int kResidentSegments = kType == FeatureType::kFloat64 ? (kAligned ? kResidentFloat64 : 4)
                                  : !kAligned                    ? 6
                                  : kType == FeatureType::kFloat32 ? kResidentFloat32
                                                                   : 8;

// The chunks of segments s, s + step, ... on a strip, one segment after the other.
template <typename AnyTeam>
class TeamWalk {
 public:
  __device__ TeamWalk(const Batch& batch, const AnyTeam& team, const Segment& first, uint32_t s,
                      uint32_t step)
      : batch_(batch),
        team_(team),
        walk_(batch, team, nullptr),
        segment_(first),
        s_(s),
        step_(step) {}

  // None after the last: it has no rows.
  __device__ __forceinline__ Chunk next(int strip) {
    if (walk_.rows_left() == 0 && s_ < num_segments()) {
      walk_.enter(segment_);
      expect_to_leave(batch_, team_, segment_, strip);
      s_ += step_;
    }
    return walk_.next();
  }

  // Asks for the segment that next() enters, if it will. Between chunks: while one closes, rows
  // need the registers.
  __device__ __forceinline__ void look_ahead() {
    if (ends_segment()) segment_ = segment_of(batch_, s_);
  }

  // Whether the chunk that next() has returned is its segment's last.
  __device__ __forceinline__ bool ends_segment() const { return walk_.rows_left() == 0; }

 private:
  __device__ __forceinline__ uint32_t num_segments() const {
    return static_cast<uint32_t>(
        batch_.scratch.first_segment[batch_.state.num_classes * batch_.plan.num_groups]);
  }

  const Batch& batch_;
  const AnyTeam& team_;
  ChunkWalk<AnyTeam> walk_;
  Segment segment_;  // the next one
  uint32_t s_;       // its number
  uint32_t step_;
};

template <FeatureType kType, bool kAligned, typename AnyTeam>
__device__ __forceinline__ void sum_segments_of(const Batch& batch, const AnyTeam& team) {
  const uint32_t num_strips = static_cast<uint32_t>(batch.plan.num_strips);
  const uint32_t num_teams = static_cast<uint32_t>(num_threads() / team.size);
  const uint32_t teams_a_strip = num_teams < num_strips ? 1 : num_teams / num_strips;
  const uint32_t* rows = batch.scratch.sorted_rows;
  uint32_t item = static_cast<uint32_t>(thread_index() / team.size);

  simt::wait_for_previous_kernel();
  // Nothing waits for another load that can do without: a team looks its segment up before it is
  // known whether there are so many.
  Segment segment = segment_of(batch, item / num_strips);
  if (has_bad_label(batch)) return;
  for (; item < teams_a_strip * num_strips; item += num_teams) {
    uint32_t s = item / num_strips;
    const int strip = static_cast<int>(item - s * num_strips);
    if (item >= num_teams) segment = segment_of(batch, s);
    const ThreadColumns<kAligned> columns(batch.features, column_of(strip, team.rank * kVector));
    TeamWalk<AnyTeam> walk(batch, team, segment, s, teams_a_strip);
    StripMoments moments = {};
    Chunk chunk = walk.next(strip);
    RowNumbers numbers;
    if (chunk.num_rows > 0) numbers.load(rows, chunk.begin, 0, chunk.num_rows);
    walk.look_ahead();
    while (chunk.num_rows > 0) {
      bool ends_segment;
      do {
        ends_segment = walk.ends_segment();
        ChunkSums<kType> sums;
        Chunk next = {0, 0, 0};
        for (int i = 0; i < chunk.num_rows; i += kGroupRows) {
          RowGroup<kType> group;
          group.load(columns, numbers);
          if (i + kGroupRows < chunk.num_rows) {
            numbers.load(rows, chunk.begin, i + kGroupRows, chunk.num_rows);
          } else {
            next = walk.next(strip);
            if (next.num_rows > 0) numbers.load(rows, next.begin, 0, next.num_rows);
          }
          sums.add(group, i == 0);
        }
        if (columns.count == 0) sums = {};
        close_chunk(team, columns, rows, chunk, sums, moments);
        walk.look_ahead();
        chunk = next;
      } while (!ends_segment);
      leave_segment(batch, team, s, segment_of(batch, s), strip, moments);
      moments = {};
      s += teams_a_strip;
    }
  }
}

template <FeatureType kType, bool kAligned>
__global__ void __launch_bounds__(kSegmentThreads, (kResidentSegments<kType, kAligned>))
    sum_segments(Batch batch, int team_size) {
  with_team(team_size, [&](const auto& team) { sum_segments_of<kType, kAligned>(batch, team); });
}

}  // namespace deeprep::cuda
