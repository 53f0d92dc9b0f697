// class_moments on a CUDA device: scratch, and the order of launches.
//
//     tables         one tile:       make_tables
//                    several tiles:  count_tiles -> sum_tiles -> place_rows
//                    many classes:   make_keys -> sort -> find_slices -> count_segments -> sum
//                                    -> list_segments
//     fused pass     sum_segments, or where segments are few sum_chunks (chunk_path.h)
//     merge          no class can have two segments:  add_to_state
//                    few classes and strips:          merge_classes
//                    else                             merge_segments -> add_to_state
//                    of chunks, few of a class:       merge_class_chunks
//                    of chunks, else                  merge_chunks, and then as above
//
// A template over the Device that launches and sorts, so that tests/simt runs this very sequence,
// and the kernels, on the host. Nothing is allocated and nothing waits: all scratch is passed in,
// sized for the worst labels, and every count that depends on labels stays on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../class_moments.h"
#include "cuda/key_sort.cuh"
#include "cuda/merge_chunks.cuh"
#include "cuda/merge_segments.cuh"
#include "cuda/sum_chunks.cuh"
#include "cuda/sum_segments.cuh"
#include "cuda/tables.cuh"

namespace deeprep::cuda {

constexpr int64_t kScratchAlignment = 256;

// merge_classes: more classes than this keep more warps busy by a kernel that gives each a warp,
// and more strips than this are many for a thread block: it takes them only where chunks have cost
// a launch already.
constexpr int64_t kMaxMergeClasses = 1024;
constexpr int64_t kMaxMergeStrips = 32;

// How many bytes of scratch an update takes, and where its arrays lie in them; the device says how
// much room an array takes, a multiple of kScratchAlignment. base: null to ask for the size alone.
template <typename Device>
class ScratchLayout {
 public:
  ScratchLayout(Device& device, int64_t num_rows, int64_t num_columns, FeatureType type,
                int64_t num_classes, char* base)
      : base_(base) {
    plan = make_plan(num_rows, num_columns, type, num_classes);
    num_blocks = (plan.num_groups - 1) * (plan.group_rows / plan.block_rows) +
                 ceil_div(num_rows - (plan.num_groups - 1) * plan.group_rows, plan.block_rows);
    num_slots = num_classes * plan.num_groups;
    has_tiles = num_classes <= kMaxTileClasses;
    if (has_tiles) tiling = make_tiling(plan, num_blocks, num_rows, num_classes);
    // Of a class in a group, all segments but the last hold kSegmentRows or more.
    const int64_t full = num_rows / kSegmentRows;
    max_segments = std::min(num_rows, num_slots) + full;
    const int64_t waiting = plan.num_groups == 1 ? 2 * (full + 1) : max_segments;
    scratch.sorted_rows = take<uint32_t>(num_rows);
    scratch.slice_begin = take<uint32_t>(num_blocks * num_classes + 1);
    scratch.first_segment = take<int64_t>(num_slots + 1);
    scratch.segments = take<Segment>(max_segments);
    scratch.segment_means = take<double>(waiting * num_columns);
    scratch.segment_growth = take<double>(max_segments * plan.num_strips);
    if (has_tiles) {
      // Of a slice, all chunks but the last hold kChunkRows.
      const int64_t num_keys = num_blocks * num_classes;
      max_chunks = num_rows / kChunkRows + std::min(num_rows, num_keys);
      scratch.first_chunk = take<uint32_t>(num_keys + 1);
      scratch.chunk_begin = take<uint32_t>(max_chunks + 1);
      in_chunks = device.use_chunks(num_rows, num_columns, type, num_classes);
      if (in_chunks) {
        scratch.chunk_means = take<double>(max_chunks * num_columns);
        scratch.chunk_sumsq = take<double>(max_chunks * plan.num_strips);
      }
      if (tiling.num_tiles > 1) {
        scratch.tile_counts = take<uint32_t>(tiling.num_tiles * tiling.tile_keys);
      }
      if (tiling.tiles_per_span > 1) {
        scratch.tile_begin = take<uint32_t>(tiling.num_tiles * tiling.tile_keys);
      }
      return;
    }
    scratch.keys = take<uint32_t>(num_rows);
    scratch.sorted_keys = take<uint32_t>(num_rows);
    scratch.rows = take<uint32_t>(num_rows);
    scratch.segment_counts = take<int64_t>(num_slots + 1);
    temporary_bytes = std::max(device.sort_bytes(num_rows), device.sum_bytes(num_slots + 1));
    temporary = take<char>(static_cast<int64_t>(temporary_bytes));
  }

  int64_t num_bytes() const { return used_; }

  Plan plan;
  int64_t num_blocks;
  int64_t num_slots;  // (class, group)
  int64_t max_segments;
  int64_t max_chunks = 0;
  bool has_tiles;          // or else keys are sorted
  bool in_chunks = false;  // the fused pass, which takes tiles
  Tiling tiling = {};
  Scratch scratch = {};
  char* temporary = nullptr;  // of the sort and the sum of key_sort.cuh
  size_t temporary_bytes = 0;

 private:
  template <typename T>
  T* take(int64_t count) {
    char* begin = base_ == nullptr ? nullptr : base_ + used_;
    used_ += Device::place(begin, count * static_cast<int64_t>(sizeof(T)));
    return reinterpret_cast<T*>(begin);
  }

  char* base_;
  int64_t used_ = 0;
};

// Bytes of scratch that launch_class_moments() takes; 0 for more classes than it takes.
template <typename Device>
int64_t scratch_bytes(Device& device, int64_t num_rows, int64_t num_columns, FeatureType type,
                      int64_t num_classes) {
  if (num_classes > kMaxClasses) return 0;
  return ScratchLayout<Device>(device, num_rows, num_columns, type, num_classes, nullptr)
      .num_bytes();
}

// Blocks of `threads` that num_items teams of team_size fill, no more than the device runs at once.
template <typename Device>
int64_t blocks_for(const Device& device, int64_t num_items, int64_t team_size, int threads) {
  return std::max<int64_t>(
      1, std::min(ceil_div(num_items * team_size, threads), device.max_blocks(threads)));
}

// The batch that the kernels of an update work on; its chunks are listed if they are asked for,
// which takes tiles.
template <typename Device>
Batch make_batch(const ScratchLayout<Device>& layout, const Features& features,
                 const Labels& labels, const ClassMoments& state, BadLabel* bad_label,
                 bool lists_chunks) {
  Batch batch = {};
  batch.features = device_features(features);
  batch.labels = labels;
  batch.state = state;
  batch.bad_label = bad_label;
  batch.plan = layout.plan;
  batch.tiling = layout.tiling;
  batch.num_blocks = layout.num_blocks;
  batch.lists_chunks = lists_chunks;
  batch.max_segments = layout.max_segments;
  batch.max_chunks = layout.max_chunks;
  batch.scratch = layout.scratch;
  return batch;
}

// The tables of a batch in tiles: one kernel, or three.
template <typename Label, typename Device>
void launch_tiles(Device& device, const Batch& batch) {
  const Tiling& tiling = batch.tiling;
  const int64_t of_device = device.most_threads() / kWarpThreads;
  const int64_t of_tile = std::min(most_tile_warps(tiling), of_device);
  const int num_runs = static_cast<int>(runs_of_tile(tiling, of_tile));
  // Warps that have no run sum counts, and list segments.
  const auto threads = [&](int64_t num_keys, int64_t least_warps, int64_t most_warps) {
    const int64_t wanted = ceil_div(num_keys, int64_t{kKeysAThread} * kWarpThreads);
    return static_cast<int>(std::clamp(wanted, least_warps, most_warps)) * kWarpThreads;
  };
  const int tile_threads = threads(tiling.tile_keys, num_runs, of_tile);
  if (tiling.num_tiles == 1) {
    device.launch(make_tables<Label>, 1, tile_threads, batch, num_runs);
    return;
  }
  const int64_t num_keys = batch.num_blocks * batch.state.num_classes;
  device.launch(count_tiles<Label>, tiling.num_tiles, tile_threads, batch, num_runs);
  device.launch_next(sum_tiles, 1, threads(num_keys, 1, of_device), batch);
  device.launch_next(place_rows<Label>, tiling.num_tiles, tile_threads, batch, num_runs);
}

template <typename Label, typename Device>
void launch_key_sort(Device& device, const ScratchLayout<Device>& layout, const Batch& batch) {
  const int threads = device.threads_per_block();
  const auto blocks = [&](int64_t items) { return blocks_for(device, items, 1, threads); };
  const int64_t num_rows = batch.features.num_rows;
  const int64_t num_keys = layout.num_blocks * batch.state.num_classes + 1;
  int key_bits = 1;
  while (key_bits < 32 && num_keys - 1 >= int64_t{1} << key_bits) ++key_bits;
  device.launch(make_keys<Label>, blocks(num_rows), threads, batch);
  device.sort(layout.temporary, layout.temporary_bytes, batch.scratch.keys,
              batch.scratch.sorted_keys, batch.scratch.rows, batch.scratch.sorted_rows, num_rows,
              key_bits);
  device.launch_next(find_slices, blocks(num_keys), threads, batch);
  device.launch_next(count_segments, blocks(layout.num_slots + 1), threads, batch);
  device.sum(layout.temporary, layout.temporary_bytes, batch.scratch.segment_counts,
             batch.scratch.first_segment, layout.num_slots + 1);
  device.launch_next(list_segments, blocks(layout.num_slots), threads, batch);
}

template <typename Device>
void launch_tables(Device& device, const ScratchLayout<Device>& layout, const Batch& batch) {
  visit_labels(batch.labels.data, batch.labels.type, [&](const auto* values) {
    using Label = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
    if (layout.has_tiles) {
      launch_tiles<Label>(device, batch);
    } else {
      launch_key_sort<Label>(device, layout, batch);
    }
  });
}

// Whether every row is contiguous and can be read as AlignedColumns say.
template <FeatureType kType>
bool can_load_vectors(const Features& features) {
  constexpr int64_t kSize = size_of(kType);
  constexpr int kLoadBytes = Columns<kType>::kLoadBytes;
  const int64_t row_stride_bytes = features.row_stride * kSize;
  return features.column_stride == 1 && features.num_columns % kVector == 0 &&
         row_stride_bytes >= 0 && row_stride_bytes <= UINT32_MAX &&
         row_stride_bytes % kLoadBytes == 0 &&
         reinterpret_cast<uintptr_t>(features.data) % kLoadBytes == 0;
}

template <FeatureType kType, typename Device>
void launch_sum_segments(Device& device, const Features& features, const Batch& batch,
                         int64_t max_segments) {
  const int team = team_size(features.num_columns);
  const int threads = std::min(device.threads_per_block(), kSegmentThreads);
  const int64_t teams = device.segment_teams(features.num_rows, batch.state.num_classes,
                                             max_segments * batch.plan.num_strips, team);
  const int64_t blocks = blocks_for(device, teams, team, threads);
  if (can_load_vectors<kType>(features)) {
    device.launch_next(sum_segments<kType, true>, blocks, threads, batch, team);
  } else {
    device.launch_next(sum_segments<kType, false>, blocks, threads, batch, team);
  }
}

template <FeatureType kType, typename Device>
void launch_sum_chunks(Device& device, const Features& features, const Batch& batch,
                       int64_t max_chunks) {
  const int team = team_size(features.num_columns);
  const int64_t blocks = blocks_for(device, max_chunks * batch.plan.num_strips,
                                    int64_t{team} * kGroupsPerChunk, kChunkThreads);
  int log_team = 0;
  while (1 << log_team < team) ++log_team;
  if (can_load_vectors<kType>(features)) {
    device.launch_next(sum_chunks<kType, true>, blocks, kChunkThreads, batch, log_team);
  } else {
    device.launch_next(sum_chunks<kType, false>, blocks, kChunkThreads, batch, log_team);
  }
}

// Merges chunks into segments; whether they and all that is left are in the state by then.
template <typename Device>
bool launch_merge_chunks(Device& device, const Batch& batch, int64_t max_segments) {
  constexpr int64_t kItemsATeam = 4;
  const int64_t num_classes = batch.state.num_classes;
  const int64_t num_strips = batch.plan.num_strips;
  const int team = merge_team_size(batch.features.num_columns);
  const int64_t items = ceil_div(max_segments, num_classes) * num_strips;
  const int64_t wanted = ceil_div(items * team, kWarpThreads) * kWarpThreads;
  if (num_classes <= kMaxMergeClasses && wanted <= kItemsATeam * kMergeThreads) {
    const int most = std::min(kMergeThreads, device.most_threads());
    const int threads = static_cast<int>(std::min<int64_t>(wanted, most));
    device.launch_next(merge_class_chunks, std::min(num_classes, device.max_blocks(threads)),
                       threads, batch, team);
    return true;
  }
  const int threads = device.threads_per_block();
  device.launch_next(merge_chunks, blocks_for(device, max_segments * num_strips, team, threads),
                     threads, batch, team);
  return false;
}

// What is left after the fused pass: segments that wait, counts and sums of squares.
template <typename Device>
void launch_merge(Device& device, const Batch& batch, bool in_chunks) {
  const int threads = device.threads_per_block();
  const int64_t num_classes = batch.state.num_classes;
  const int64_t num_strips = batch.plan.num_strips;
  const int team = merge_team_size(batch.features.num_columns);
  // A class has two segments only if its rows lie in two groups, or if one of its segments was
  // closed, by kSegmentRows rows, and a row was left: more than kSegmentRows in all.
  const bool merges = batch.plan.num_groups > 1 || batch.features.num_rows > kSegmentRows;
  const bool in_one = in_chunks || num_strips <= kMaxMergeStrips;
  if (merges && num_classes <= kMaxMergeClasses && in_one) {
    const int64_t wanted = ceil_div(num_strips * team, kWarpThreads) * kWarpThreads;
    const int of_a_class = static_cast<int>(std::min<int64_t>(wanted, threads));
    const int64_t blocks = std::min(num_classes, device.max_blocks(of_a_class));
    device.launch_next(merge_classes, blocks, of_a_class, batch, team);
    return;
  }
  if (merges) {
    device.launch_next(merge_segments, blocks_for(device, num_classes * num_strips, team, threads),
                       threads, batch, team);
  }
  device.launch_next(add_to_state, blocks_for(device, num_classes, kWarpThreads, threads), threads,
                     batch);
}

// Merges a batch into the state, all of it on the device, unless it or an earlier one has a bad
// label: see bad_label.h. scratch: scratch_bytes() or more, aligned to kScratchAlignment.
// Nothing is launched on kTooManyClasses and on kScratchTooSmall.
template <typename Device>
Status launch_class_moments(Device& device, const Features& features, const Labels& labels,
                            const ClassMoments& state, BadLabel* bad_label, char* scratch,
                            int64_t num_scratch_bytes) {
  if (state.num_classes > kMaxClasses) {
    return {Code::kTooManyClasses, kMaxClasses, state.num_classes};
  }
  const int64_t num_rows = features.num_rows;
  if (num_rows == 0) return {};
  const ScratchLayout<Device> layout(device, num_rows, features.num_columns, features.type,
                                     state.num_classes, scratch);
  if (layout.num_bytes() > num_scratch_bytes) {
    return {Code::kScratchTooSmall, layout.num_bytes(), num_scratch_bytes};
  }
  const Batch batch = make_batch(layout, features, labels, state, bad_label, layout.in_chunks);
  launch_tables(device, layout, batch);
  visit_type(features.type, [&](auto type) {
    constexpr FeatureType kType = decltype(type)::value;
    if (layout.in_chunks) {
      launch_sum_chunks<kType>(device, features, batch, layout.max_chunks);
    } else {
      launch_sum_segments<kType>(device, features, batch, layout.max_segments);
    }
  });
  if (layout.in_chunks && launch_merge_chunks(device, batch, layout.max_segments)) return {};
  launch_merge(device, batch, layout.in_chunks);
  return {};
}

}  // namespace deeprep::cuda
