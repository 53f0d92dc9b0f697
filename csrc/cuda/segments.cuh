// From labels to a list of segments, on the device: which rows a warp sums, in which order.
//
// Keys order the rows by block, then class (plan.h), a stable sort keeps input order within: the
// rows of one key are a slice. Segments string the slices of a class in a group together.
// Everything is a few bytes per row beside the features. Parallel axis: rows, keys, or (class,
// group).
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
struct Segment {
  int64_t begin;
  int64_t block;
  int64_t class_index;
  int64_t num_rows;
};

// Arrays that live for one update, see ScratchLayout.
struct Scratch {
  uint32_t* keys;           // N: block * K + class, and num_blocks * K for rows left out
  uint32_t* rows;           // N
  uint32_t* sorted_keys;    // N
  uint32_t* sorted_rows;    // N
  uint32_t* slice_begin;    // num_blocks * K + 1: position of the first row of each key
  int64_t* segment_counts;  // K * groups + 1, class by class
  int64_t* first_segment;   // K * groups + 1: the counts before each, summed
  Segment* segments;
  double* segment_means;   // slots x d, of segments that wait to be merged
  double* segment_growth;  // segments x strips: what the sums of squares grow by
};

// What the kernels work on.
struct Batch {
  DeviceFeatures features;
  Labels labels;
  ClassMoments state;
  BadLabel* bad_label;
  Plan plan;
  int64_t num_blocks;
  Scratch scratch;
};

__device__ inline bool has_bad_label(const Batch& batch) { return batch.bad_label->row != -1; }

__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t num_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Keys and rows to be sorted; notes the first bad label.
template <typename Label>
__global__ void make_keys(Batch batch) {
  const Label* labels = static_cast<const Label*>(batch.labels.data);
  const int64_t num_classes = batch.state.num_classes;
  const bool is_final = batch.bad_label->is_final != -1;
  for (int64_t i = thread_index(); i < batch.features.num_rows; i += num_threads()) {
    const int64_t label = labels[i];
    const bool is_kept = label != batch.labels.ignore_index;
    const bool is_class = is_kept && label >= 0 && label < num_classes;
    if (is_kept && !is_class && !is_final) {
      atomicMin(reinterpret_cast<unsigned long long*>(&batch.bad_label->row),
                static_cast<unsigned long long>(i));
    }
    const int64_t block = is_class ? i / batch.plan.block_rows : batch.num_blocks;
    batch.scratch.keys[i] = static_cast<uint32_t>(block * num_classes + (is_class ? label : 0));
    batch.scratch.rows[i] = static_cast<uint32_t>(i);
  }
}

// slice_begin[key] for every key, by bisection: keys without rows are many when K is.
static __global__ void find_slices(Batch batch) {
  const int64_t num_keys = batch.num_blocks * batch.state.num_classes + 1;
  for (int64_t key = thread_index(); key < num_keys; key += num_threads()) {
    int64_t begin = 0;
    int64_t end = batch.features.num_rows;
    while (begin < end) {
      const int64_t middle = begin + (end - begin) / 2;
      if (batch.scratch.sorted_keys[middle] < key) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    batch.scratch.slice_begin[key] = static_cast<uint32_t>(begin);
  }
}

// Calls found(segment) for the segments of a class in a group, in order; returns how many.
template <typename Found>
__device__ inline int64_t walk_segments(const Batch& batch, int64_t class_index, int64_t group,
                                        Found&& found) {
  const int64_t blocks_per_group = batch.plan.group_rows / batch.plan.block_rows;
  const int64_t first_block = group * blocks_per_group;
  int64_t end_block = first_block + blocks_per_group;
  if (end_block > batch.num_blocks) end_block = batch.num_blocks;
  Segment segment = {0, 0, class_index, 0};
  int64_t num_segments = 0;
  for (int64_t block = first_block; block < end_block; ++block) {
    const uint32_t* slice =
        batch.scratch.slice_begin + block * batch.state.num_classes + class_index;
    for (int64_t begin = slice[0]; begin < slice[1];) {
      if (segment.num_rows == 0) {
        segment.begin = begin;
        segment.block = block;
      }
      const int64_t rows = rows_for_segment(segment.num_rows, slice[1] - begin);
      segment.num_rows += rows;
      begin += rows;
      if (segment.num_rows >= kSegmentRows) {
        found(num_segments++, segment);
        segment.num_rows = 0;
      }
    }
  }
  if (segment.num_rows > 0) found(num_segments++, segment);
  return num_segments;
}

static __global__ void count_segments(Batch batch) {
  const int64_t num_slots = batch.state.num_classes * batch.plan.num_groups;
  for (int64_t slot = thread_index(); slot <= num_slots; slot += num_threads()) {
    // One more than there are, so that the sums before each end with the sum of all.
    batch.scratch.segment_counts[slot] =
        slot == num_slots || has_bad_label(batch)
            ? 0
            : walk_segments(batch, slot / batch.plan.num_groups, slot % batch.plan.num_groups,
                            [](int64_t, const Segment&) {});
  }
}

static __global__ void list_segments(Batch batch) {
  if (has_bad_label(batch)) return;
  const int64_t num_slots = batch.state.num_classes * batch.plan.num_groups;
  for (int64_t slot = thread_index(); slot < num_slots; slot += num_threads()) {
    Segment* segments = batch.scratch.segments + batch.scratch.first_segment[slot];
    walk_segments(batch, slot / batch.plan.num_groups, slot % batch.plan.num_groups,
                  [&](int64_t i, const Segment& segment) { segments[i] = segment; });
  }
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
  return 2 * (segment.begin / kSegmentRows) + (segment.num_rows < kSegmentRows ? 1 : 0);
}

}  // namespace deeprep::cuda
