// The tables of a batch in tiles.
//
// A batch of one tile gets all of them from one kernel, a batch of more from three: the tiles'
// counts, their sums (by one thread block, which has a few numbers a block and class to read), and
// the places, with the lists of segments and chunks.
#pragma once

#include "cuda/tile_sort.cuh"

namespace deeprep::cuda {

constexpr int kKeysAThread = 4;  // that it asks for at a time, of those to be summed

// ------------------------------------------------------------------------ sums over a thread block

struct SumInBlock {
  uint64_t before;  // of the values of the threads before this one
  uint64_t total;
};

// To be called by all threads of the block.
__device__ __forceinline__ SumInBlock sum_in_block(uint64_t value) {
  using WarpSums = simt::Array<uint64_t, 32>;
  SIMT_SHARED(WarpSums, warp_sums);
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  uint64_t sum = value;
  for (unsigned step = 1; step < kWarpThreads; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, sum, step);
    if (lane >= static_cast<int>(step)) sum += other;
  }
  if (lane == kWarpThreads - 1) warp_sums[warp] = sum;
  __syncthreads();
  SumInBlock sums = {sum - value, 0};
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarpThreads; ++w) {
    if (w < warp) sums.before += warp_sums[w];
    sums.total += warp_sums[w];
  }
  __syncthreads();
  return sums;
}

// Calls write(i, sum of value(0) ... value(i - 1)) for i = 0 ... count, by one thread block.
template <typename Value, typename Write>
__device__ __forceinline__ void write_sums(int64_t count, Value&& value, Write&& write) {
  uint64_t before = 0;
  for (int64_t base = 0; base <= count; base += int64_t{kKeysAThread} * blockDim.x) {
    const int64_t first = base + int64_t{kKeysAThread} * threadIdx.x;
    uint64_t values[kKeysAThread];
    uint64_t own = 0;
#pragma unroll
    for (int i = 0; i < kKeysAThread; ++i) {
      values[i] = first + i < count ? value(first + i) : 0;
      own += values[i];
    }
    const SumInBlock sums = sum_in_block(own);
    uint64_t sum = before + sums.before;
#pragma unroll
    for (int i = 0; i < kKeysAThread; ++i) {
      if (first + i <= count) write(first + i, sum);
      sum += values[i];
    }
    before += sums.total;
  }
}

// slice_begin, and first_chunk if it is asked for, from rows_of(key); by one thread block. Rows and
// chunks are summed together, in the halves of a word: there are fewer than 2^32 rows.
template <typename RowsOf>
__device__ __forceinline__ void begin_slices(const Batch& batch, RowsOf&& rows_of) {
  write_sums(
      batch.num_blocks * batch.state.num_classes,
      [&](int64_t key) {
        const uint64_t rows = rows_of(key);
        return (rows + kChunkRows - 1) / kChunkRows << 32 | rows;
      },
      [&](int64_t key, uint64_t sum) {
        batch.scratch.slice_begin[key] = static_cast<uint32_t>(sum);
        if (batch.lists_chunks) {
          batch.scratch.first_chunk[key] = static_cast<uint32_t>(sum >> 32);
        }
      });
}

// first_segment, by one thread block. Neighbouring threads read neighbouring classes.
__device__ inline void count_all_segments(const Batch& batch) {
  const int num_groups = static_cast<int>(batch.plan.num_groups);
  const int num_classes = static_cast<int>(batch.state.num_classes);
  const int num_slots = num_classes * num_groups;
  int64_t* first_segment = batch.scratch.first_segment;
  for (int i = static_cast<int>(threadIdx.x); i < num_slots; i += static_cast<int>(blockDim.x)) {
    const int group = i / num_classes;
    const int class_index = i % num_classes;
    first_segment[class_index * num_groups + group] = count_segments_of(batch, class_index, group);
  }
  __syncthreads();
  write_sums(
      num_slots, [&](int64_t slot) { return static_cast<uint64_t>(first_segment[slot]); },
      [&](int64_t slot, uint64_t sum) { first_segment[slot] = static_cast<int64_t>(sum); });
}

// Segments, and chunks if they are asked for, by all threads of the grid. Positions have no gaps:
// where a chunk begins, the one before ends.
__device__ inline void list_all(const Batch& batch) {
  const int64_t num_classes = batch.state.num_classes;
  const int64_t num_slots = num_classes * batch.plan.num_groups;
  for (int64_t i = thread_index(); i < num_slots; i += num_threads()) {
    list_segments_of(batch, i % num_classes, i / num_classes);
  }
  if (!batch.lists_chunks) return;
  const int64_t num_keys = batch.num_blocks * num_classes;
  for (int64_t key = thread_index(); key <= num_keys; key += num_threads()) {
    const uint32_t first = batch.scratch.first_chunk[key];
    const uint32_t end = key < num_keys ? batch.scratch.first_chunk[key + 1] : first + 1;
    uint32_t begin = batch.scratch.slice_begin[key];
    for (uint32_t chunk = first; chunk < end; ++chunk) {
      batch.scratch.chunk_begin[chunk] = begin;
      begin += static_cast<uint32_t>(kChunkRows);
    }
  }
}

// ------------------------------------------------------------------------ the kernels

// All tables of a batch that is one tile, by one thread block.
template <typename Label>
__global__ void __launch_bounds__(kOneTileThreads) make_tables(Batch batch, int num_runs) {
  SIMT_SHARED(TileCounters, counters);
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  const Tile tile = find_tile(batch, 0);
  const uint32_t bad = count_keys<Label>(batch, tile, num_runs, counters);
  if (bad != kNoRow) {
    if (threadIdx.x == 0) {
      batch.bad_label->row = bad;
      complete_bad_label(batch);
    }
    return;
  }
  begin_slices(batch, [&](int64_t key) {
    return sum_runs(counters, tile, num_runs, static_cast<int>(key));
  });
  __syncthreads();
  place_keys<Label>(batch, tile, num_runs, counters, batch.scratch.slice_begin);
  count_all_segments(batch);
  __syncthreads();
  list_all(batch);
}

// How many rows of each key every tile has; notes the first bad label. A thread block for a tile.
template <typename Label>
__global__ void __launch_bounds__(kTileThreads) count_tiles(Batch batch, int num_runs) {
  SIMT_SHARED(TileCounters, counters);
  simt::wait_for_previous_kernel();
  if (batch.bad_label->is_final != -1) return;
  const Tile tile = find_tile(batch, blockIdx.x);
  const uint32_t bad = count_keys<Label>(batch, tile, num_runs, counters);
  if (bad != kNoRow && threadIdx.x == 0) {
    atomicMin(reinterpret_cast<unsigned long long*>(&batch.bad_label->row),
              static_cast<unsigned long long>(tile.first_row + bad));
  }
  uint32_t* counts = batch.scratch.tile_counts + blockIdx.x * batch.tiling.tile_keys;
  const int num_threads = static_cast<int>(blockDim.x);
  for (int key = static_cast<int>(threadIdx.x); key < tile.num_keys; key += num_threads) {
    counts[key] = sum_runs(counters, tile, num_runs, key);
  }
}

// From the tiles' counts to slices and to the numbers of segments. By one thread block.
static __global__ void __launch_bounds__(kOneTileThreads) sum_tiles(Batch batch) {
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) {
    if (threadIdx.x == 0) complete_bad_label(batch);
    return;
  }
  // The counts of a key lie tile_keys apart, one for each tile of its span. A tile of several
  // blocks has the keys of all of them, so what comes before a span are whole tiles.
  const int64_t tile_keys = batch.tiling.tile_keys;
  const int64_t per_span = batch.tiling.tiles_per_span;
  begin_slices(batch, [&](int64_t key) {
    const uint32_t span = static_cast<uint32_t>(key) / static_cast<uint32_t>(tile_keys);
    const int64_t first = span * per_span;
    const int64_t left = batch.tiling.num_tiles - first;
    const int64_t tiles = left < per_span ? left : per_span;
    const uint32_t* counts =
        batch.scratch.tile_counts + first * tile_keys + (key - span * tile_keys);
    uint64_t rows = 0;
#pragma unroll 8
    for (int64_t tile = 0; tile < tiles; ++tile) rows += counts[tile * tile_keys];
    return rows;
  });
  __syncthreads();
  count_all_segments(batch);
}

// Where the tile's rows of each key begin, if it shares them with the tiles before it in its span.
__device__ inline const uint32_t* begin_keys(const Batch& batch, const Tile& tile) {
  const uint32_t* slices = batch.scratch.slice_begin + tile.first_key;
  if (batch.tiling.tiles_per_span == 1) return slices;
  const int64_t tile_keys = batch.tiling.tile_keys;
  const int64_t before = blockIdx.x % batch.tiling.tiles_per_span;
  const uint32_t* counts = batch.scratch.tile_counts + (blockIdx.x - before) * tile_keys;
  uint32_t* begin = batch.scratch.tile_begin + blockIdx.x * tile_keys;
  const int num_threads = static_cast<int>(blockDim.x);
  for (int key = static_cast<int>(threadIdx.x); key < tile.num_keys; key += num_threads) {
    uint32_t rows = 0;
#pragma unroll 8
    for (int64_t other = 0; other < before; ++other) rows += counts[other * tile_keys + key];
    begin[key] = slices[key] + rows;
  }
  return begin;
}

// Places the rows, a thread block for a tile; and lists segments.
template <typename Label>
__global__ void __launch_bounds__(kTileThreads, 2) place_rows(Batch batch, int num_runs) {
  SIMT_SHARED(TileCounters, counters);
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  const Tile tile = find_tile(batch, blockIdx.x);
  count_keys<Label>(batch, tile, num_runs, counters);
  const int num_threads = static_cast<int>(blockDim.x);
  for (int key = static_cast<int>(threadIdx.x); key < tile.num_keys; key += num_threads) {
    sum_runs(counters, tile, num_runs, key);
  }
  const uint32_t* begin = begin_keys(batch, tile);
  __syncthreads();
  place_keys<Label>(batch, tile, num_runs, counters, begin);
  list_all(batch);
}

}  // namespace deeprep::cuda
