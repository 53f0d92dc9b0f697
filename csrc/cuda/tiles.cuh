// The tables by a stable counting sort in shared memory, for up to kMaxTileClasses classes.
//
// A thread block sorts a tile of rows by key: consecutive runs of its rows are its warps', each of
// which counts the rows of every key in its run, 32 rows at a time. Equal labels among the 32 find
// each other by a match, so neither the counts nor the places take an atomic, and the order of the
// input stays. A batch of one tile gets all tables from one kernel; of more tiles, from three: the
// tiles' counts, their sums (by one thread block, as are the segments), and the places.
#pragma once

#include <algorithm>

#include "cuda/segments.cuh"

namespace deeprep::cuda {

constexpr int64_t kMaxTileClasses = 4096;
constexpr int64_t kMaxTileRows = 16 * 1024;  // counts are of 16 bits; batches up to this are a tile
constexpr int64_t kTileRows = 4096;  // of other tiles, unless a block has more and is a tile

// 47 KiB of the 48 that a thread block has everywhere, and five runs or more: a tile has
// kMaxTileClasses keys at most. (Blocks have 32 rows a class or more where a batch has several, so
// a tile of several has fewer keys than rows / 32.)
constexpr int64_t kTileCounters = 47 * 512;
constexpr int kRunRows = 128;  // that a run has at least, unless the tile has fewer
constexpr int kRowsAhead = 4;  // labels that a lane asks for before the first is needed
constexpr int kKeysAThread = 4;

inline Tiling make_tiling(const Plan& plan, int64_t num_blocks, int64_t num_rows,
                          int64_t num_classes) {
  if (num_rows <= kMaxTileRows) return {1, num_rows, num_blocks * num_classes, 1, num_rows};
  if (plan.block_rows <= kMaxTileRows) {
    const int64_t blocks = std::max<int64_t>(1, kTileRows / plan.block_rows);
    const int64_t rows = blocks * plan.block_rows;
    return {ceil_div(num_rows, rows), rows, blocks * num_classes, 1, rows};
  }
  const int64_t parts = ceil_div(plan.block_rows, kTileRows);
  const int64_t rows = ceil_div(ceil_div(plan.block_rows, parts), kWarpThreads) * kWarpThreads;
  const int64_t per_block = ceil_div(plan.block_rows, rows);
  const int64_t before_last = num_blocks - 1;
  const int64_t in_last = ceil_div(num_rows - before_last * plan.block_rows, rows);
  return {before_last * per_block + in_last, rows, num_classes, per_block, plan.block_rows};
}

// Runs into which a tile's rows are cut, one for a warp; there may be more warps than runs.
inline int64_t runs_of_tile(const Tiling& tiling, int64_t most_warps) {
  const int64_t runs = std::min(kTileCounters / tiling.tile_keys,
                                ceil_div(tiling.tile_rows, static_cast<int64_t>(kRunRows)));
  return std::min(runs, most_warps);
}

using TileCounters = simt::Array<uint16_t, static_cast<int>(kTileCounters)>;

// Rows and keys of one tile.
struct Tile {
  int64_t first_row;
  int64_t first_key;
  int num_rows;
  int num_keys;
};

__device__ inline Tile find_tile(const Batch& batch, int64_t index) {
  const Tiling& tiling = batch.tiling;
  const int64_t span = index / tiling.tiles_per_span;
  const int64_t first = span * tiling.span_rows + index % tiling.tiles_per_span * tiling.tile_rows;
  int64_t end = (span + 1) * tiling.span_rows;
  if (end > first + tiling.tile_rows) end = first + tiling.tile_rows;
  if (end > batch.features.num_rows) end = batch.features.num_rows;
  const int64_t first_key = first / batch.plan.block_rows * batch.state.num_classes;
  const int64_t keys_left = batch.num_blocks * batch.state.num_classes - first_key;
  return {first, first_key, static_cast<int>(end - first),
          static_cast<int>(keys_left < tiling.tile_keys ? keys_left : tiling.tile_keys)};
}

constexpr int kLeftOut = -1;
constexpr uint32_t kNoRow = 0xffffffffu;

// Calls visit(row, key) for the rows of this warp's run, by all lanes at once: rows are of the
// tile, key is kLeftOut where a row is left out, is bad or does not exist. Returns the lane's first
// bad row, or kNoRow.
template <typename Label, typename Visit>
__device__ __forceinline__ uint32_t visit_run(const Batch& batch, const Tile& tile, int num_runs,
                                              Visit&& visit) {
  const int run = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  if (run >= num_runs) return kNoRow;
  const Label* labels = static_cast<const Label*>(batch.labels.data) + tile.first_row;
  const uint32_t block_rows = static_cast<uint32_t>(batch.plan.block_rows);
  const int num_classes = static_cast<int>(batch.state.num_classes);
  const int of_a_run = (tile.num_rows + num_runs - 1) / num_runs;
  const int run_rows = (of_a_run + kWarpThreads - 1) / kWarpThreads * kWarpThreads;
  const int begin = run * run_rows;
  const int end = begin + run_rows < tile.num_rows ? begin + run_rows : tile.num_rows;
  uint32_t first_bad = kNoRow;
  for (int base = begin; base < end; base += kRowsAhead * kWarpThreads) {
    int64_t of_rows[kRowsAhead];
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      const int row = base + i * kWarpThreads + lane;
      of_rows[i] = row < end ? labels[row] : batch.labels.ignore_index;
    }
#pragma unroll
    for (int i = 0; i < kRowsAhead; ++i) {
      const int row = base + i * kWarpThreads + lane;
      const int64_t label = of_rows[i];
      int key = kLeftOut;
      if (label != batch.labels.ignore_index) {
        if (label >= 0 && label < num_classes) {
          // Tiles that begin within a block end within it.
          const int block = static_cast<int>(static_cast<uint32_t>(row) / block_rows);
          key = block * num_classes + static_cast<int>(label);
        } else if (first_bad == kNoRow) {
          first_bad = static_cast<uint32_t>(row);
        }
      }
      visit(row, key);
    }
  }
  return first_bad;
}

// Counts the rows of every key in every run; returns the tile's first bad row, or kNoRow, to all.
template <typename Label>
__device__ __forceinline__ uint32_t count_keys(const Batch& batch, const Tile& tile, int num_runs,
                                               TileCounters& counters) {
  SIMT_SHARED(uint32_t, first_bad);
  if (threadIdx.x == 0) first_bad = kNoRow;
  const int num_threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < num_runs * tile.num_keys; i += num_threads) {
    counters[i] = 0;
  }
  __syncthreads();
  const int own = static_cast<int>(threadIdx.x) / kWarpThreads * tile.num_keys;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const uint32_t bad = visit_run<Label>(batch, tile, num_runs, [&](int, int key) {
    const unsigned equal = __match_any_sync(~0u, key);
    if (key != kLeftOut && lane == __ffs(static_cast<int>(equal)) - 1) {
      counters[own + key] = static_cast<uint16_t>(counters[own + key] + __popc(equal));
    }
    __syncwarp();
  });
  if (bad != kNoRow) atomicMin(&first_bad, bad);
  __syncthreads();
  return first_bad;
}

// Turns the runs' counts of a key into the counts before each run; returns the tile's.
__device__ __forceinline__ uint32_t sum_runs(TileCounters& counters, const Tile& tile, int num_runs,
                                             int key) {
  int sum = 0;
  for (int run = 0; run < num_runs; ++run) {
    const int count = counters[run * tile.num_keys + key];
    counters[run * tile.num_keys + key] = static_cast<uint16_t>(sum);
    sum += count;
  }
  return static_cast<uint32_t>(sum);
}

// Writes the numbers of the tile's rows where they belong: begin[key] is the place of the first of
// its key, counters hold how many are in the runs before.
template <typename Label>
__device__ __forceinline__ void place_keys(const Batch& batch, const Tile& tile, int num_runs,
                                           TileCounters& counters, const uint32_t* begin) {
  const int own = static_cast<int>(threadIdx.x) / kWarpThreads * tile.num_keys;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  visit_run<Label>(batch, tile, num_runs, [&](int row, int key) {
    const unsigned equal = __match_any_sync(~0u, key);
    const int before = __popc(equal & ((1u << lane) - 1));
    const int seen = key != kLeftOut ? counters[own + key] : 0;
    __syncwarp();  // all have read before the first lane of each key adds its rows
    if (key != kLeftOut) {
      batch.scratch.sorted_rows[begin[key] + static_cast<uint32_t>(seen + before)] =
          static_cast<uint32_t>(tile.first_row + row);
      if (before == 0) counters[own + key] = static_cast<uint16_t>(seen + __popc(equal));
    }
    __syncwarp();
  });
}

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

// chunk_begin, by one thread block. Positions have no gaps: where a chunk begins, the one before
// ends.
__device__ inline void list_all_chunks(const Batch& batch) {
  const int64_t num_keys = batch.num_blocks * batch.state.num_classes;
  for (int64_t key = threadIdx.x; key <= num_keys; key += blockDim.x) {
    const uint32_t first = batch.scratch.first_chunk[key];
    const uint32_t end = key < num_keys ? batch.scratch.first_chunk[key + 1] : first + 1;
    uint32_t begin = batch.scratch.slice_begin[key];
    for (uint32_t chunk = first; chunk < end; ++chunk) {
      batch.scratch.chunk_begin[chunk] = begin;
      begin += static_cast<uint32_t>(kChunkRows);
    }
  }
}

// All segments, by one thread block. Neighbouring threads read neighbouring classes.
__device__ inline void list_all_segments(const Batch& batch) {
  const int num_groups = static_cast<int>(batch.plan.num_groups);
  const int num_classes = static_cast<int>(batch.state.num_classes);
  const int num_slots = num_classes * num_groups;
  const int num_threads = static_cast<int>(blockDim.x);
  int64_t* first_segment = batch.scratch.first_segment;
  for (int i = static_cast<int>(threadIdx.x); i < num_slots; i += num_threads) {
    const int group = i / num_classes;
    const int class_index = i % num_classes;
    first_segment[class_index * num_groups + group] = count_segments_of(batch, class_index, group);
  }
  __syncthreads();
  write_sums(
      num_slots, [&](int64_t slot) { return static_cast<uint64_t>(first_segment[slot]); },
      [&](int64_t slot, uint64_t sum) { first_segment[slot] = static_cast<int64_t>(sum); });
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < num_slots; i += num_threads) {
    list_segments_of(batch, i % num_classes, i / num_classes);
  }
}

// ------------------------------------------------------------------------ the kernels

// All tables of a batch that is one tile, by one thread block.
template <typename Label>
__global__ void __launch_bounds__(1024) make_tables(Batch batch, int num_runs) {
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
  list_all_segments(batch);
  if (batch.lists_chunks) list_all_chunks(batch);
}

// How many rows of each key every tile has; notes the first bad label. A thread block for a tile.
template <typename Label>
__global__ void __launch_bounds__(1024) count_tiles(Batch batch, int num_runs) {
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

// From the tiles' counts to slices and segments, and to where each tile's rows of a key begin, if a
// block has several tiles. By one thread block.
static __global__ void __launch_bounds__(1024) sum_tiles(Batch batch) {
  constexpr int kAhead = 4;
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) {
    if (threadIdx.x == 0) complete_bad_label(batch);
    return;
  }
  // The counts of a key lie tile_keys apart, one for each tile of its span. A tile of several
  // blocks has the keys of all of them, so what comes before a span are whole tiles.
  const int64_t tile_keys = batch.tiling.tile_keys;
  const int64_t per_span = batch.tiling.tiles_per_span;
  const auto first_tile_of = [&](int64_t key) {
    return static_cast<uint32_t>(key) / static_cast<uint32_t>(tile_keys) * per_span;
  };
  const auto counts_of = [&](int64_t key) {
    const uint32_t of_tile = static_cast<uint32_t>(key) % static_cast<uint32_t>(tile_keys);
    return batch.scratch.tile_counts + first_tile_of(key) * tile_keys + of_tile;
  };
  const auto num_parts = [&](int64_t key) {
    const int64_t left = batch.tiling.num_tiles - first_tile_of(key);
    return left < per_span ? left : per_span;
  };
  begin_slices(batch, [&](int64_t key) {
    const uint32_t* counts = counts_of(key);
    const int64_t parts = num_parts(key);
    uint64_t rows = 0;
#pragma unroll 4
    for (int64_t part = 0; part < parts; ++part) rows += counts[part * tile_keys];
    return rows;
  });
  __syncthreads();
  if (per_span > 1) {
    const int64_t num_keys = batch.num_blocks * batch.state.num_classes;
    for (int64_t key = threadIdx.x; key < num_keys; key += blockDim.x) {
      uint32_t* counts = counts_of(key);
      const int64_t parts = num_parts(key);
      uint32_t begin = batch.scratch.slice_begin[key];
      for (int64_t base = 0; base < parts; base += kAhead) {
        uint32_t of_parts[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          of_parts[i] = base + i < parts ? counts[(base + i) * tile_keys] : 0;
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (base + i < parts) counts[(base + i) * tile_keys] = begin;
          begin += of_parts[i];
        }
      }
    }
  }
  list_all_segments(batch);
  if (batch.lists_chunks) list_all_chunks(batch);
}

// A thread block for a tile.
template <typename Label>
__global__ void __launch_bounds__(1024) place_rows(Batch batch, int num_runs) {
  SIMT_SHARED(TileCounters, counters);
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) return;
  const Tile tile = find_tile(batch, blockIdx.x);
  count_keys<Label>(batch, tile, num_runs, counters);
  const int num_threads = static_cast<int>(blockDim.x);
  for (int key = static_cast<int>(threadIdx.x); key < tile.num_keys; key += num_threads) {
    sum_runs(counters, tile, num_runs, key);
  }
  __syncthreads();
  const uint32_t* begin = batch.tiling.tiles_per_span == 1
                              ? batch.scratch.slice_begin + tile.first_key
                              : batch.scratch.tile_counts + blockIdx.x * batch.tiling.tile_keys;
  place_keys<Label>(batch, tile, num_runs, counters, begin);
}

}  // namespace deeprep::cuda
