// What the kernels share: the batch, its scratch, and the segments, which say the rows that a team
// sums and in which order.
//
// The rows of a class in a block, in input order, are a slice (plan.h); sorted_rows holds them
// slice by slice. Segments string the slices of a class in a group together. Everything is a few
// bytes a row beside the features. tables.cuh and key_sort.cuh fill the tables.
#pragma once

#include "../class_moments.h"
#include "cuda/bad_label.h"
#include "cuda/elements.cuh"
#include "cuda/simt.h"
#include "plan.h"

namespace deeprep::cuda {

constexpr int kWarpThreads = 32;

// One class's rows [begin, begin + num_rows) of a group, of which its slices are the pieces:
// positions in class order within `block`, and on in the class's slices of the blocks that follow.
// Read by one load of 16 bytes.
struct alignas(16) Segment {
  uint32_t begin;
  uint32_t block;
  uint32_t class_index;
  uint32_t num_rows;
};

// Arrays that live for one update, see ScratchLayout. A key is a slice's number: block * K + class.
struct Scratch {
  uint32_t* keys;           // N: of each row, num_blocks * K for rows left out. For key_sort.cuh,
  uint32_t* rows;           // N                                                 as are these,
  uint32_t* sorted_keys;    // N                                                         this
  int64_t* segment_counts;  // K * groups + 1, class by class                            and this
  uint32_t* tile_counts;    // tiles x keys of a tile, for tables.cuh
  uint32_t* tile_begin;     // the same: position of the tile's first row of each key
  uint32_t* sorted_rows;    // N
  uint32_t* slice_begin;    // num_blocks * K + 1: position of the first row of each key
  uint32_t* first_chunk;    // num_blocks * K + 1: the chunks before each key's, for all slices
  uint32_t* chunk_begin;    // one more than there are: position of the first row of each
  int64_t* first_segment;   // K * groups + 1: the segments before each class's in a group
  Segment* segments;
  double* segment_means;   // slots x d, of segments that wait to be merged
  double* segment_growth;  // segments x strips: what the sums of squares grow by
  double* chunk_means;     // chunks x d, for sum_chunks.cuh
  double* chunk_sumsq;     // chunks x strips, each summed over the strip's columns
};

// How the rows are cut into tiles, of which each is sorted by a thread block: tiles are whole
// blocks, or parts of one, so that a span, of one tile or more, is whole blocks.
struct Tiling {
  int64_t num_tiles;
  int64_t tile_rows;
  int64_t tile_keys;
  int64_t tiles_per_span;
  int64_t span_rows;
};

// What the kernels work on.
struct Batch {
  DeviceFeatures features;
  Labels labels;
  ClassMoments state;
  BadLabel* bad_label;
  Plan plan;
  Tiling tiling;
  int64_t num_blocks;
  bool lists_chunks;
  int64_t max_segments;  // that the list has room for
  int64_t max_chunks;    // and that of chunks
  Scratch scratch;
};

__device__ inline bool has_bad_label(const Batch& batch) { return batch.bad_label->row != -1; }

// Notes the value of a bad label beside its row, once the row is certain.
__device__ inline void complete_bad_label(const Batch& batch) {
  if (batch.bad_label->is_final != -1) return;
  const int64_t row = batch.bad_label->row;
  batch.bad_label->label = batch.labels.type == LabelType::kInt32
                               ? static_cast<const int32_t*>(batch.labels.data)[row]
                               : static_cast<const int64_t*>(batch.labels.data)[row];
  batch.bad_label->is_final = 1;
}

__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t num_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Calls found(i, segment) for the segments of a class in a group, in order; returns how many. Rows
// are counted in 32 bits, as in the tables.
template <typename Found>
__device__ inline int64_t walk_segments(const Batch& batch, int64_t class_index, int64_t group,
                                        Found&& found) {
  constexpr int kAhead = 8;  // slices asked for before the first is needed
  const int64_t num_classes = batch.state.num_classes;
  const int64_t blocks_per_group = batch.plan.group_rows / batch.plan.block_rows;
  const int64_t first_block = group * blocks_per_group;
  int64_t end_block = first_block + blocks_per_group;
  if (end_block > batch.num_blocks) end_block = batch.num_blocks;
  int64_t num_segments = 0;
  uint32_t first_row = 0;  // of the open segment, which holds num_rows
  int64_t in_block = 0;
  uint32_t num_rows = 0;
  const auto close = [&] {
    found(num_segments, Segment{first_row, static_cast<uint32_t>(in_block),
                                static_cast<uint32_t>(class_index), num_rows});
    ++num_segments;
    num_rows = 0;
  };
  for (int64_t base = first_block; base < end_block; base += kAhead) {
    uint32_t begins[kAhead];
    uint32_t ends[kAhead];
    const uint32_t* slice = batch.scratch.slice_begin + base * num_classes + class_index;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const bool exists = base + i < end_block;
      begins[i] = exists ? slice[0] : 0;
      ends[i] = exists ? slice[1] : 0;
      slice += num_classes;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      for (uint32_t begin = begins[i]; begin < ends[i];) {
        if (num_rows == 0) {
          first_row = begin;
          in_block = base + i;
        }
        const uint32_t rows = rows_for_segment(num_rows, ends[i] - begin);
        num_rows += rows;
        begin += rows;
        if (num_rows >= kSegmentRows) close();
      }
    }
  }
  if (num_rows > 0) close();
  return num_segments;
}

__device__ inline int64_t count_segments_of(const Batch& batch, int64_t class_index,
                                            int64_t group) {
  return walk_segments(batch, class_index, group, [](int64_t, const Segment&) {});
}

__device__ inline void list_segments_of(const Batch& batch, int64_t class_index, int64_t group) {
  Segment* segments = batch.scratch.segments +
                      batch.scratch.first_segment[class_index * batch.plan.num_groups + group];
  walk_segments(batch, class_index, group,
                [&](int64_t i, const Segment& segment) { segments[i] = segment; });
}

// Where the class's segments begin and end in the list.
__device__ inline int64_t first_segment_of(const Batch& batch, int64_t class_index) {
  return batch.scratch.first_segment[class_index * batch.plan.num_groups];
}

// The slot of segment_means where segment s waits to be merged. With several groups all segments
// have one. With one group there may be many more segments than wait, those of classes that have
// several, and there are only 2 (N / kSegmentRows + 1) slots, chosen by position; no two meet:
// - one group is one block, so a full segment holds kSegmentRows rows exactly: two of them begin as
//   far apart, hence in different quotients, and take the even slots;
// - a short segment that waits is its class's last and follows a full one of the same class: two of
//   them begin as far apart too, and take the odd slots.
__device__ inline int64_t waiting_slot(const Batch& batch, const Segment& segment, int64_t s) {
  if (batch.plan.num_groups > 1) return s;
  constexpr uint32_t kFull = kSegmentRows;
  return 2 * int64_t{segment.begin / kFull} + (segment.num_rows < kFull ? 1 : 0);
}

}  // namespace deeprep::cuda
