// A stable counting sort of a tile's rows by key, in shared memory, for kMaxTileClasses or fewer.
//
// A thread block sorts a tile of rows by key: consecutive runs of its rows are its warps', each of
// which counts the rows of every key in its run, 32 rows at a time. Equal labels among the 32 find
// each other by a match, so neither the counts nor the places take an atomic, and the order of the
// input stays. tables.cuh makes tables with it.
#pragma once

#include <algorithm>

#include "cuda/segments.cuh"

namespace deeprep::cuda {

constexpr int64_t kMaxTileClasses = 4096;
constexpr int64_t kMaxTileRows = 16 * 1024;  // counts are of 16 bits; batches up to this are a tile
// Of other tiles, about: as many keep a multiprocessor busy for long enough, and more than some
// for each class make the counts of all tiles few beside the labels.
constexpr int64_t kTileRows = 4096;
constexpr int64_t kTileRowsPerClass = 8;

// 47 KiB of the 48 that a thread block has everywhere, and five runs or more: a tile has
// kMaxTileClasses keys at most. (Blocks have 32 rows a class or more where a batch has several, so
// a tile of several has fewer keys than rows / 32.)
constexpr int64_t kTileCounters = 47 * 512;
constexpr int kRunRows = 128;      // that a run has at least, unless the tile has fewer
constexpr int kTileThreads = 512;  // of several tiles: two or three blocks share a multiprocessor
constexpr int kOneTileThreads = 1024;
constexpr int kRowsAhead = 4;  // labels that a lane asks for before the first is needed

inline Tiling make_tiling(const Plan& plan, int64_t num_blocks, int64_t num_rows,
                          int64_t num_classes) {
  if (num_rows <= kMaxTileRows) return {1, num_rows, num_blocks * num_classes, 1, num_rows};
  if (plan.block_rows <= kMaxTileRows) {
    const int64_t blocks = std::max<int64_t>(1, kTileRows / plan.block_rows);
    const int64_t rows = blocks * plan.block_rows;
    return {ceil_div(num_rows, rows), rows, blocks * num_classes, 1, rows};
  }
  const int64_t wanted =
      std::min(kMaxTileRows, std::max(kTileRows, kTileRowsPerClass * num_classes));
  const int64_t parts = ceil_div(plan.block_rows, wanted);
  const int64_t rows = ceil_div(ceil_div(plan.block_rows, parts), kWarpThreads) * kWarpThreads;
  const int64_t per_block = ceil_div(plan.block_rows, rows);
  const int64_t before_last = num_blocks - 1;
  const int64_t in_last = ceil_div(num_rows - before_last * plan.block_rows, rows);
  return {before_last * per_block + in_last, rows, num_classes, per_block, plan.block_rows};
}

// Warps of a thread block that sorts a tile, at most.
inline int64_t most_tile_warps(const Tiling& tiling) {
  return (tiling.num_tiles == 1 ? kOneTileThreads : kTileThreads) / kWarpThreads;
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
  constexpr int kAhead = 8;
  int sum = 0;
  for (int base = 0; base < num_runs; base += kAhead) {
    int counts[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      counts[i] = base + i < num_runs ? counters[(base + i) * tile.num_keys + key] : 0;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (base + i < num_runs) {
        counters[(base + i) * tile.num_keys + key] = static_cast<uint16_t>(sum);
      }
      sum += counts[i];
    }
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

}  // namespace deeprep::cuda
