// What the fused passes share of a segment: its chunks in order, its moments, and where it leaves
// them.
#pragma once

#include "cuda/row_groups.cuh"
#include "cuda/segments.cuh"
#include "cuda/strips.cuh"

namespace deeprep::cuda {

// The moments of a segment on the columns of one thread; growth is the strip's, the same in every
// thread of the team.
struct StripMoments {
  int n;  // a segment has no more than kSegmentRows + kChunkRows
  double mean[kVector];
  double growth;
};

// Rows of one class in class order, from position `begin` on.
struct Chunk {
  uint32_t begin;
  int num_rows;  // 0: there is none
  uint32_t index;
};

// The chunks of a segment one after the other, the same in every thread of a team. Their slices lie
// in one block after the other: each thread looks up that of one block, all at a time, and hands it
// to the others when they come to it.
template <typename AnyTeam>
class ChunkWalk {
 public:
  // first_chunk: of every key, see Scratch; null where no one asks for the index of a chunk.
  __device__ ChunkWalk(const Batch& batch, const AnyTeam& team, const uint32_t* first_chunk)
      : batch_(batch), team_(team), first_chunk_(first_chunk) {}

  // Before its first chunk.
  __device__ __forceinline__ void enter(const Segment& segment) {
    const uint32_t begin = segment.begin;
    rows_left_ = static_cast<int>(segment.num_rows);
    if (first_chunk_ == nullptr && batch_.num_blocks == 1) {
      begin_ = begin;  // nothing to look up: a segment is a piece of one slice
      end_ = begin + segment.num_rows;
      return;
    }
    own_key_ =
        (segment.block + static_cast<uint32_t>(team_.rank)) * num_classes() + segment.class_index;
    look_up();
    take_slice();
    chunk_ += (begin - begin_) / static_cast<uint32_t>(kChunkRows);
    begin_ = begin;
  }

  // None after the last: it has no rows.
  __device__ __forceinline__ Chunk next() {
    if (rows_left_ == 0) return {0, 0, 0};
    while (begin_ == end_) {
      if (num_taken_ == team_.size) {
        own_key_ += static_cast<uint32_t>(team_.size) * num_classes();
        look_up();
      }
      take_slice();
    }
    const uint32_t left = end_ - begin_;
    const int rows = static_cast<int>(left < kChunkRows ? left : kChunkRows);
    const Chunk chunk = {begin_, rows, chunk_};
    begin_ += static_cast<uint32_t>(rows);
    ++chunk_;
    rows_left_ -= rows;
    return chunk;
  }

  // Of the segment, after the chunk that next() has returned.
  __device__ __forceinline__ int rows_left() const { return rows_left_; }

 private:
  // Where there are several blocks, keys of all of them are far from the end of 32 bits: a block
  // has 32 rows for each class.
  __device__ __forceinline__ uint32_t num_classes() const {
    return static_cast<uint32_t>(batch_.state.num_classes);
  }

  // The slices of as many blocks as the team has threads.
  __device__ __forceinline__ void look_up() {
    own_begin_ = own_end_ = own_chunk_ = 0;
    num_taken_ = 0;
    if (own_key_ >= batch_.num_blocks * batch_.state.num_classes) return;
    own_begin_ = batch_.scratch.slice_begin[own_key_];
    own_end_ = batch_.scratch.slice_begin[own_key_ + 1];
    if (first_chunk_ != nullptr) own_chunk_ = first_chunk_[own_key_];
  }

  __device__ __forceinline__ void take_slice() {
    begin_ = __shfl_sync(team_.mask, own_begin_, num_taken_, team_.size);
    end_ = __shfl_sync(team_.mask, own_end_, num_taken_, team_.size);
    if (first_chunk_ != nullptr) {
      chunk_ = __shfl_sync(team_.mask, own_chunk_, num_taken_, team_.size);
    }
    ++num_taken_;
  }

  const Batch& batch_;
  const AnyTeam& team_;
  const uint32_t* first_chunk_;
  uint32_t own_key_ = 0;  // of this thread's block
  int rows_left_ = 0;
  uint32_t own_begin_ = 0, own_end_ = 0, own_chunk_ = 0;
  int num_taken_ = 0;  // of the slices looked up
  uint32_t begin_ = 0, end_ = 0;
  uint32_t chunk_ = 0;
};

// Merges (m, other) into (n, mean[kVector]), of which `count` columns exist; returns what the sum
// of squares grows by the distance of the means.
template <typename AnyTeam>
__device__ __forceinline__ double merge_mean(const AnyTeam& team, const double (&other)[kVector],
                                             int64_t m, int64_t n, double* mean, int count) {
  double growth[kVector];
  const MergeWeights weights = merge_weights(n, m);
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    growth[e] = 0;
    if (e >= count) continue;
    if (n == 0) {
      mean[e] = other[e];
    } else {
      const double delta = other[e] - mean[e];
      mean[e] += delta * weights.mean_weight;
      growth[e] = delta * delta * weights.sumsq_weight;
    }
  }
  return n == 0 ? 0 : sum_strip(team, growth);
}

// Merges kStripsAtOnce moments, of rows[i] rows each, into (n, mean[kVector]) one after the other;
// those without rows, which come last, are not there. others: their means. Leaves there nothing of
// use, and in growths what each makes the sum of squares grow by the distance of the means. Means
// must follow each other; the sums over columns need not, and are taken of all at a time.
template <typename AnyTeam>
__device__ __forceinline__ void merge_means(const AnyTeam& team,
                                            double (&others)[kStripsAtOnce * kVector],
                                            const int (&rows)[kStripsAtOnce], int64_t n,
                                            double (&mean)[kVector],
                                            double (&growths)[kStripsAtOnce]) {
#pragma unroll
  for (int i = 0; i < kStripsAtOnce; ++i) {
    const MergeWeights weights = merge_weights(n, rows[i]);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      double& other = others[i * kVector + e];
      const double delta = other - mean[e];
      const double moved = mean[e] + delta * weights.mean_weight;
      const double growth = delta * delta * weights.sumsq_weight;
      // No branch: sums over columns do not wait for one.
      mean[e] = rows[i] == 0 ? mean[e] : n == 0 ? other : moved;
      other = n == 0 ? 0 : growth;
    }
    n += rows[i];
  }
  sum_strips(team, others, growths);
}

// The s-th segment of the list, anything where there is none.
__device__ __forceinline__ Segment segment_of(const Batch& batch, int64_t s) {
  const int64_t last = batch.max_segments - 1;
  return batch.scratch.segments[s < last ? s : last];
}

// Has what leave_segment() will read on its way while rows are summed.
template <typename AnyTeam>
__device__ __forceinline__ void expect_to_leave(const Batch& batch, const AnyTeam& team,
                                                const Segment& segment, int64_t strip) {
  const int64_t k = segment.class_index;
  const int64_t column = column_of(strip, team.rank * kVector);
  simt::prefetch(batch.scratch.first_segment + k * batch.plan.num_groups);
  simt::prefetch(batch.state.counts + k);
  if (column < batch.features.num_columns) {
    simt::prefetch(batch.state.means + k * batch.features.num_columns + column);
  }
}

// Merges a strip of segment s into the state if it is alone in its class; else leaves its mean to
// wait for the class's others. Its growth is left in any case.
template <typename AnyTeam>
__device__ __forceinline__ void leave_segment(const Batch& batch, const AnyTeam& team, int64_t s,
                                              const Segment& segment, int64_t strip,
                                              const StripMoments& moments) {
  const int64_t k = segment.class_index;
  const int64_t num_columns = batch.features.num_columns;
  const int64_t column = column_of(strip, team.rank * kVector);
  const int count = count_columns(batch.features, column);
  double growth = moments.growth;
  if (first_segment_of(batch, k + 1) - first_segment_of(batch, k) == 1) {
    growth += merge_mean(team, moments.mean, segment.num_rows, batch.state.counts[k],
                         batch.state.means + k * num_columns + column, count);
  } else {
    double* mean =
        batch.scratch.segment_means + waiting_slot(batch, segment, s) * num_columns + column;
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (e < count) mean[e] = moments.mean[e];
    }
  }
  if (team.rank == 0) batch.scratch.segment_growth[s * batch.plan.num_strips + strip] = growth;
}

}  // namespace deeprep::cuda
