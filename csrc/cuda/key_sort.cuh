// The tables of a batch of more classes than fit in shared memory: a key for each row, a radix sort
// of (key, row), slices by bisection. Parallel axis: rows, keys, or (class, group).
#pragma once

#include "cuda/segments.cuh"

namespace deeprep::cuda {

// Keys and rows to be sorted; notes the first bad label.
template <typename Label>
__global__ void make_keys(Batch batch) {
  simt::wait_for_previous_kernel();
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
  simt::wait_for_previous_kernel();
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

static __global__ void count_segments(Batch batch) {
  simt::wait_for_previous_kernel();
  const int64_t num_groups = batch.plan.num_groups;
  const int64_t num_slots = batch.state.num_classes * num_groups;
  for (int64_t slot = thread_index(); slot <= num_slots; slot += num_threads()) {
    // One more than there are, so that the sums before each end with the sum of all.
    batch.scratch.segment_counts[slot] =
        slot == num_slots || has_bad_label(batch)
            ? 0
            : count_segments_of(batch, slot / num_groups, slot % num_groups);
  }
}

static __global__ void list_segments(Batch batch) {
  simt::wait_for_previous_kernel();
  if (has_bad_label(batch)) {
    if (thread_index() == 0) complete_bad_label(batch);
    return;
  }
  const int64_t num_groups = batch.plan.num_groups;
  const int64_t num_slots = batch.state.num_classes * num_groups;
  for (int64_t slot = thread_index(); slot < num_slots; slot += num_threads()) {
    list_segments_of(batch, slot / num_groups, slot % num_groups);
  }
}

}  // namespace deeprep::cuda
