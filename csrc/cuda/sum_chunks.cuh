// The fused pass where segments are few: chunks side by side, whichever class they are of.
//
// Parallel axis: (chunk of up to 64 rows, strip of 128 columns), a thread block each, and within it
// the chunk's groups of eight rows (moments.h), a warp each. Where rows are short, a group takes
// less than a warp and a block several chunks.
//
// Algorithm: a thread asks for all eight rows of its group at once, so a block has its whole chunk
// in flight. The pivot, the first row of the first group, reaches the other groups through shared
// memory. Each group sums its rows one after the other in registers and leaves T and Q in shared
// memory; then half of the threads, one a column, add the groups in order, close the chunk in
// float64 and write its mean, and for the whole strip its sum of squares, for merge_chunks.cuh.
//
// Why: a class of 400 rows is one segment, which sum_segments.cuh walks with one warp a strip: ten
// classes keep a few multiprocessors busy, one round of loads at a time. Here they are seventy
// blocks a strip. It costs 8 bytes a chunk and column written and read again, 3 % of float32
// features, and pays only where most groups have rows: chunk_path.h.
#pragma once

#include "cuda/row_groups.cuh"
#include "cuda/segments.cuh"

namespace deeprep::cuda {

constexpr int kGroupsPerChunk = static_cast<int>(kChunkRows) / kGroupRows;
constexpr int kChunkThreads = kGroupsPerChunk * kWarpThreads;
constexpr int kBlockColumns = static_cast<int>(kStripColumns);  // of its chunks, side by side
constexpr int kClosingWarps = kBlockColumns / kWarpThreads;

// The columns of a thread, aligned so that they are loaded and stored 16 bytes at a time.
template <typename Accumulator>
struct alignas(16) Quad {
  Accumulator column[kVector];
};
constexpr int kBlockQuads = kBlockColumns / kVector;

// What the threads of a block tell each other.
template <typename Accumulator>
struct ChunkExchange {
  using Four = Quad<Accumulator>;
  simt::Array<Four, kBlockQuads> pivot;
  simt::Array<Four, kGroupsPerChunk * kBlockQuads> t;  // group by group
  simt::Array<Four, kGroupsPerChunk * kBlockQuads> q;
  // By warp: its columns, summed as far as one warp can.
  simt::Array<float, kClosingWarps * kCheckLanes> check_q;
  simt::Array<float, kClosingWarps * kCheckLanes> check_t2;
  simt::Array<double, kClosingWarps * kLanes> sumsq;
};

// The threads that close a chunk, one for each column: 4, 8, ... 128 of them, the first half of the
// chunk's. They sum over columns in the trees of moments.h. Where that is less than a warp, all of
// the warp does as they do, so that its shuffles name all lanes: the other half works out the same
// columns, for nothing.
struct Closers {
  int width;   // how many
  int rank;    // of this thread among those of the chunk
  int column;  // of this thread among those of the chunk
  int first;   // column of the block that is the chunk's first

  __device__ static Closers of_this_thread(int width) {
    const int thread = static_cast<int>(threadIdx.x);
    const int rank = thread & (2 * width - 1);
    return {width, rank, rank & (width - 1), (thread - rank) / 2};
  }

  // Adds columns kWidth apart, and so on, up to those of the warp; leaves the sums for the chunk's
  // other warps.
  template <int kWidth, typename Value>
  __device__ __forceinline__ Value
  add_in_warp(Value value, simt::Array<Value, kClosingWarps * kWidth>& sums) const {
    for (int step = kWidth; step < width && step < kWarpThreads; step *= 2) {
      value += __shfl_xor_sync(~0u, value, step);
    }
    if (width > kWarpThreads && column % kWarpThreads < kWidth) {
      sums[(first + column) / kWarpThreads * kWidth + column % kWarpThreads] = value;
    }
    return value;
  }

  // Adds what the warps have left, a barrier later, and the last kWidth columns.
  template <int kWidth, typename Value>
  __device__ __forceinline__ Value
  add_warps(Value value, const simt::Array<Value, kClosingWarps * kWidth>& sums) const {
    if (width > kWarpThreads) {
      const int own = first / kWarpThreads * kWidth + column % kWidth;
      value = sums[own] + sums[own + kWidth];
      if (width > 2 * kWarpThreads) value += sums[own + 2 * kWidth] + sums[own + 3 * kWidth];
    }
    for (int step = kWidth / 2; step > 0; step /= 2) {
      if (step < width) value += __shfl_xor_sync(~0u, value, step);
    }
    return value;
  }
};

// Where a chunk begins and ends in class order; anything where there is none.
struct ChunkBounds {
  uint32_t begin;
  uint32_t end;

  __device__ __forceinline__ static ChunkBounds of(const Batch& batch, int64_t chunk) {
    const int64_t last = batch.max_chunks - 1;
    const uint32_t* begin = batch.scratch.chunk_begin + (chunk < last ? chunk : last);
    return {begin[0], begin[1]};
  }
};

// Blocks that share a multiprocessor: as many as leave each thread the registers for its rows.
template <FeatureType kType, bool kAligned>
constexpr int kResidentChunks = !kAligned || kType == FeatureType::kFloat64 ? 2
                                : kType == FeatureType::kFloat32            ? 3
                                                                            : 4;

// log_team: of the threads that share a row of a strip.
template <FeatureType kType, bool kAligned>
__global__ void __launch_bounds__(kChunkThreads, (kResidentChunks<kType, kAligned>))
    sum_chunks(Batch batch, int log_team) {
  using Accumulator = typename Element<kType>::Accumulator;
  using Exchange = ChunkExchange<Accumulator>;
  constexpr bool kChecked = sizeof(Accumulator) == sizeof(float);
  SIMT_SHARED(Exchange, shared);
  const Closers closers = Closers::of_this_thread(kVector << log_team);
  const int group = closers.rank >> log_team;
  const int nth_quad = closers.rank - (group << log_team);  // of the strip
  const int quad = closers.first / kVector + nth_quad;      // of the block
  const int num_chunks = kWarpThreads >> log_team;          // of a block
  const int nth_chunk = closers.first / kVector >> log_team;
  const uint32_t* sorted_rows = batch.scratch.sorted_rows;
  const int64_t num_columns = batch.features.num_columns;
  const int64_t num_strips = batch.plan.num_strips;
  int64_t item = int64_t{blockIdx.x} * num_chunks + nth_chunk;

  simt::wait_for_previous_kernel();
  // Nothing waits for another load that can do without: a block's chunk is looked up before it is
  // known whether there are so many.
  ChunkBounds bounds = ChunkBounds::of(batch, item / num_strips);
  const int64_t num_items =
      batch.scratch.first_chunk[batch.num_blocks * batch.state.num_classes] * num_strips;
  if (has_bad_label(batch)) return;
  while (item - nth_chunk < num_items) {
    const int64_t chunk = item / num_strips;
    const int64_t strip = item - chunk * num_strips;
    const int64_t begin = bounds.begin;
    const int num_rows = item < num_items ? static_cast<int>(bounds.end - bounds.begin) : 0;
    const bool has_group = group * kGroupRows < num_rows;
    RowGroup<kType> rows;
    if (has_group) {
      RowNumbers numbers;
      numbers.load(sorted_rows, begin, group * kGroupRows, num_rows);
      rows.load(ThreadColumns<kAligned>(batch.features, column_of(strip, nth_quad * kVector)),
                numbers);
    }
    if (has_group && group == 0) {
      Quad<Accumulator> pivot;
#pragma unroll
      for (int e = 0; e < kVector; ++e) pivot.column[e] = rows.rows[0].value(e);
      shared.pivot[quad] = pivot;
    }
    __syncthreads();
    if (has_group) {
      const Quad<Accumulator> pivot = shared.pivot[quad];
      Quad<Accumulator> t;
      Quad<Accumulator> q;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        rows.sum(e, pivot.column[e], t.column[e], q.column[e]);
      }
      shared.t[group * kBlockQuads + quad] = t;
      shared.q[group * kBlockQuads + quad] = q;
    }
    __syncthreads();

    // From here on a thread is a column.
    const bool closes = closers.rank < closers.width || closers.width < kWarpThreads;
    const int own_quad = (closers.first + closers.column) / kVector;
    const int own_column = closers.column % kVector;
    Accumulator t = 0;
    Accumulator q = 0;
    float check_q = 0;
    float check_t2 = 0;
    const int64_t column = column_of(strip, closers.column);
    const bool exists = column < num_columns;
    if (closes) {
#pragma unroll
      for (int g = 0; g < kGroupsPerChunk; ++g) {
        // No branch, so that all are asked for at once; adding +0 changes no bit.
        const bool adds = g * kGroupRows < num_rows && exists;
        t += adds ? shared.t[g * kBlockQuads + own_quad].column[own_column] : 0;
        q += adds ? shared.q[g * kBlockQuads + own_quad].column[own_column] : 0;
      }
      if constexpr (kChecked) {
        check_q = closers.add_in_warp<kCheckLanes>(q, shared.check_q);
        check_t2 = closers.add_in_warp<kCheckLanes>(t * t, shared.check_t2);
      }
    }
    if constexpr (kChecked) {
      __syncthreads();
    }
    double sumsq = 0;
    if (closes) {
      double exact_t = t;
      double exact_q = q;
      if constexpr (kChecked) {
        check_q = closers.add_warps<kCheckLanes>(check_q, shared.check_q);
        check_t2 = closers.add_warps<kCheckLanes>(check_t2, shared.check_t2);
        if (num_rows > 1 && cannot_trust(check_q, check_t2, num_rows) && exists) {
          sum_column_in_double<kType>(ThreadColumns<false>(batch.features, column, 1), sorted_rows,
                                      begin, num_rows, 0, exact_t, exact_q);
        }
      }
      const double inverse_rows = 1.0 / static_cast<double>(num_rows);
      const double pivot = shared.pivot[own_quad].column[own_column];
      if (exists && closers.rank < closers.width && num_rows > 0) {
        batch.scratch.chunk_means[chunk * num_columns + column] =
            chunk_mean(pivot, exact_t, inverse_rows);
      }
      sumsq =
          closers.add_in_warp<kLanes>(chunk_sumsq(exact_q, exact_t, inverse_rows), shared.sumsq);
    }
    __syncthreads();
    if (closes && closers.rank < kWarpThreads) {
      sumsq = closers.add_warps<kLanes>(sumsq, shared.sumsq);
      if (closers.rank == 0 && num_rows > 0) {
        batch.scratch.chunk_sumsq[chunk * num_strips + strip] = sumsq;
      }
    }
    item += int64_t{gridDim.x} * num_chunks;
    if (item < num_items) bounds = ChunkBounds::of(batch, item / num_strips);
  }
}

}  // namespace deeprep::cuda
