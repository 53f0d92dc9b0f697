// The fused pass: every feature is loaded once, and leaves as the moments of its segment.
//
// Parallel axis: (segment, strip of 128 columns). A team of threads, a warp for 128 columns of
// float32, owns one and walks its chunks: kChunkRows gathered rows, eight 16-byte loads in flight
// per thread, t and q in registers; each chunk merges in float64 into a mean and a sum of squares
// that stay in registers too. Teams never wait for each other: no shared memory, no barrier, no
// atomic. Short rows make small teams, several to a warp; long rows and long classes make many. The
// order of operations is that of plan.h and moments.h, so the bits are the CPU's.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/segments.cuh"
#include "cuda/strips.cuh"

namespace deeprep::cuda {

// The moments of a segment on the columns of one thread; growth is the strip's, the same in every
// thread of the team.
template <int kVector>
struct StripMoments {
  int64_t n;
  double mean[kVector];
  double growth;
};

// Where a thread finds its columns of a row.
struct ThreadColumns {
  const char* first;  // of row 0
  int64_t row_stride_bytes;
  int64_t column_stride_bytes;
  const uint32_t* rows;  // in class order
  int count;             // of columns, the rest being padding

  __device__ const char* row(int64_t position) const {
    return first + rows[position] * row_stride_bytes;
  }
};

// Sums of a chunk, by column.
template <FeatureType kType>
struct ChunkSums {
  using Accumulator = typename Element<kType>::Accumulator;
  static constexpr int kVector = Element<kType>::kVector;
  Accumulator pivot[kVector];
  Accumulator t[kVector];
  Accumulator q[kVector];

  // Sums of kRows rows from `position` on, joined pair by pair; the first of a chunk is its pivot.
  template <int kRows, bool kAligned>
  __device__ __forceinline__ void join_rows(const ThreadColumns& columns, int64_t position,
                                            bool is_first, Accumulator (&joined_t)[kVector],
                                            Accumulator (&joined_q)[kVector]) {
    Columns<kType> rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (kAligned) {
        // All columns of this thread exist, or none: padding, which still takes part in shuffles.
        rows[r].load_vector(columns.row(position + r), columns.count > 0);
      } else {
        rows[r].load_each(columns.row(position + r), columns.column_stride_bytes, columns.count);
      }
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (is_first) pivot[e] = rows[0].value(e);
      Accumulator d[kRows];
      Accumulator square[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        d[r] = rows[r].value(e) - pivot[e];
        square[r] = d[r] * d[r];
      }
#pragma unroll
      for (int step = 1; step < kRows; step *= 2) {
#pragma unroll
        for (int r = 0; r + step < kRows; r += 2 * step) {
          d[r] += d[r + step];
          square[r] += square[r + step];
        }
      }
      joined_t[e] = d[0];
      joined_q[e] = square[0];
    }
  }

  // Adds kRows rows. Eight are in flight at once where a row is one load, four where it is more.
  template <int kRows, bool kAligned>
  __device__ __forceinline__ void add_rows(const ThreadColumns& columns, int64_t position,
                                           bool is_first) {
    constexpr bool kHalved = kRows == 8 && (!kAligned || sizeof(Accumulator) == 8);
    Accumulator joined_t[kVector];
    Accumulator joined_q[kVector];
    join_rows<kHalved ? 4 : kRows, kAligned>(columns, position, is_first, joined_t, joined_q);
    if constexpr (kHalved) {
      Accumulator more_t[kVector];
      Accumulator more_q[kVector];
      join_rows<4, kAligned>(columns, position + 4, false, more_t, more_q);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        joined_t[e] += more_t[e];
        joined_q[e] += more_q[e];
      }
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      // The pivot's own difference is +0, so adding to zero changes no bit of the first sum.
      t[e] += joined_t[e];
      q[e] += joined_q[e];
    }
  }

  template <bool kAligned>
  __device__ __forceinline__ void sum(const ThreadColumns& columns, int64_t begin, int num_rows) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) t[e] = q[e] = 0;
    int i = 0;
    for (; i + 8 <= num_rows; i += 8) add_rows<8, kAligned>(columns, begin + i, i == 0);
    if (i + 4 <= num_rows) {
      add_rows<4, kAligned>(columns, begin + i, i == 0);
      i += 4;
    }
    if (i + 2 <= num_rows) {
      add_rows<2, kAligned>(columns, begin + i, i == 0);
      i += 2;
    }
    if (i < num_rows) add_rows<1, kAligned>(columns, begin + i, i == 0);
  }

  // Whether the team must sum the strip again in double.
  __device__ __forceinline__ bool needs_double(const Team& team, int num_rows) const {
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

// One column of a chunk summed again in double, plainly and in row order: rare.
template <FeatureType kType>
__device__ __forceinline__ void sum_column_in_double(const ThreadColumns& columns, int64_t begin,
                                                     int num_rows, int e, double& t, double& q) {
  using Type = Element<kType>;
  const auto value = [&](int64_t position) {
    const char* address = columns.row(position) + e * columns.column_stride_bytes;
    return static_cast<double>(Type::widen(*reinterpret_cast<const typename Type::Bits*>(address)));
  };
  const double pivot = value(begin);
  t = 0;
  q = 0;
#pragma unroll 1
  for (int i = 0; i < num_rows; ++i) {
    const double d = value(begin + i) - pivot;
    t += d;
    q += d * d;
  }
}

// Sums the chunk of num_rows rows at `begin` and merges it.
template <FeatureType kType, bool kAligned>
__device__ __forceinline__ void add_chunk(const Team& team, const ThreadColumns& columns,
                                          int64_t begin, int num_rows,
                                          StripMoments<Element<kType>::kVector>& moments) {
  constexpr int kVector = Element<kType>::kVector;
  ChunkSums<kType> sums;
  sums.template sum<kAligned>(columns, begin, num_rows);
  const bool in_double = sums.needs_double(team, num_rows);
  const double inverse_rows = 1.0 / static_cast<double>(num_rows);
  const MergeWeights weights = merge_weights(moments.n, num_rows);
  double growth[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    double t = sums.t[e];
    double q = sums.q[e];
    if (in_double && e < columns.count) {
      sum_column_in_double<kType>(columns, begin, num_rows, e, t, q);
    }
    const double mean = chunk_mean(static_cast<double>(sums.pivot[e]), t, inverse_rows);
    growth[e] = chunk_sumsq(q, t, inverse_rows);
    if (moments.n == 0) {
      moments.mean[e] = mean;
    } else {
      const double delta = mean - moments.mean[e];
      moments.mean[e] += delta * weights.mean_weight;
      growth[e] += delta * delta * weights.sumsq_weight;
    }
  }
  moments.growth += sum_strip(team, growth);
  moments.n += num_rows;
}

// Merges a finished segment into (n, mean[kVector]), of which `count` columns exist; returns what
// the sum of squares grows by the distance of the means.
template <int kVector>
__device__ __forceinline__ double merge_mean(const Team& team, const double (&other)[kVector],
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

// Blocks of 256 threads that share a multiprocessor: two leave 128 registers a thread, which
// float64 and the elementwise loads of the unaligned path would spill.
template <FeatureType kType, bool kAligned>
constexpr int kResidentBlocks = kAligned && kType != FeatureType::kFloat64 ? 2 : 1;

template <FeatureType kType, bool kAligned>
__global__ void __launch_bounds__(256, (kResidentBlocks<kType, kAligned>))
    sum_segments(Batch batch, int team_size) {
  constexpr int kVector = Element<kType>::kVector;
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  const Team team = Team::of_this_thread(team_size);
  const int64_t num_strips = batch.plan.num_strips;
  const int64_t num_items =
      batch.scratch.first_segment[batch.state.num_classes * batch.plan.num_groups] * num_strips;
  for (int64_t item = thread_index() / team_size; item < num_items;
       item += num_threads() / team_size) {
    const int64_t s = item / num_strips;
    const int64_t strip = item % num_strips;
    const Segment segment = batch.scratch.segments[s];
    const int64_t column = strip * kStripColumns + team.rank * kVector;
    const int64_t left = batch.features.num_columns - column;
    const int count = left < 0 ? 0 : left < kVector ? static_cast<int>(left) : kVector;
    const ThreadColumns columns = {
        batch.features.data + column * batch.features.column_stride_bytes,
        batch.features.row_stride_bytes, batch.features.column_stride_bytes,
        batch.scratch.sorted_rows, count};
    StripMoments<kVector> moments = {};
    int64_t begin = segment.begin;
    for (int64_t block = segment.block; moments.n < segment.num_rows; ++block) {
      const uint32_t* slice =
          batch.scratch.slice_begin + block * batch.state.num_classes + segment.class_index;
      if (block != segment.block) begin = slice[0];
      while (begin < slice[1] && moments.n < segment.num_rows) {
        const int64_t rows = slice[1] - begin;
        const int num_rows = static_cast<int>(rows < kChunkRows ? rows : kChunkRows);
        add_chunk<kType, kAligned>(team, columns, begin, num_rows, moments);
        begin += num_rows;
      }
    }

    const int64_t k = segment.class_index;
    const bool is_alone = first_segment_of(batch, k + 1) - first_segment_of(batch, k) == 1;
    double growth = moments.growth;
    if (is_alone) {
      growth += merge_mean(team, moments.mean, segment.num_rows, batch.state.counts[k],
                           batch.state.means + k * batch.features.num_columns + column, count);
    } else {
      double* mean = batch.scratch.segment_means +
                     waiting_slot(batch, segment, s) * batch.features.num_columns + column;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        if (e < count) mean[e] = moments.mean[e];
      }
    }
    if (team.rank == 0) batch.scratch.segment_growth[s * num_strips + strip] = growth;
  }
}

}  // namespace deeprep::cuda
