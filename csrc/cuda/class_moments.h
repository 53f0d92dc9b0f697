// class_moments on a CUDA device: scratch, and the order of launches.
//
//     make_keys -> sort -> find_slices -> count_segments -> sum -> list_segments
//               -> sum_segments -> merge_segments -> add_to_state, complete_bad_label
//
// A template over the Device that launches and sorts, so that tests/simt runs this very sequence,
// and the kernels, on the host. Nothing is allocated and nothing waits: all scratch is passed in,
// sized for the worst labels, and every count that depends on labels stays on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../class_moments.h"
#include "cuda/merge_segments.cuh"

namespace deeprep::cuda {

constexpr int64_t kScratchAlignment = 256;

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
    // Of a class in a group, all segments but the last hold kSegmentRows or more.
    const int64_t full = num_rows / kSegmentRows;
    max_segments = std::min(num_rows, num_slots) + full;
    const int64_t waiting = plan.num_groups == 1 ? 2 * (full + 1) : max_segments;
    scratch.keys = take<uint32_t>(num_rows);
    scratch.sorted_keys = take<uint32_t>(num_rows);
    scratch.rows = take<uint32_t>(num_rows);
    scratch.sorted_rows = take<uint32_t>(num_rows);
    scratch.slice_begin = take<uint32_t>(num_blocks * num_classes + 1);
    scratch.segment_counts = take<int64_t>(num_slots + 1);
    scratch.first_segment = take<int64_t>(num_slots + 1);
    scratch.segments = take<Segment>(max_segments);
    scratch.segment_means = take<double>(waiting * num_columns);
    scratch.segment_growth = take<double>(max_segments * plan.num_strips);
    temporary_bytes = std::max(device.sort_bytes(num_rows), device.sum_bytes(num_slots + 1));
    temporary = take<char>(static_cast<int64_t>(temporary_bytes));
  }

  int64_t num_bytes() const { return used_; }

  Plan plan;
  int64_t num_blocks;
  int64_t num_slots;  // (class, group)
  int64_t max_segments;
  Scratch scratch;
  char* temporary;  // of the sort and the sum
  size_t temporary_bytes;

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

// Whether every row is contiguous and can be read 16 bytes at a time.
template <FeatureType kType>
bool can_load_vectors(const Features& features) {
  constexpr int64_t kSize = size_of(kType);
  return features.column_stride == 1 && features.num_columns % Element<kType>::kVector == 0 &&
         features.row_stride * kSize % 16 == 0 &&
         reinterpret_cast<uintptr_t>(features.data) % 16 == 0;
}

template <FeatureType kType, typename Device>
void launch_sum_segments(Device& device, const Features& features, const Batch& batch,
                         int64_t max_segments) {
  const int team = team_size(features.num_columns, Element<kType>::kVector);
  const int threads = device.threads_per_block();
  const int64_t blocks = blocks_for(device, max_segments * batch.plan.num_strips, team, threads);
  if (can_load_vectors<kType>(features)) {
    device.launch(sum_segments<kType, true>, blocks, threads, batch, team);
  } else {
    device.launch(sum_segments<kType, false>, blocks, threads, batch, team);
  }
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
  Batch batch = {};
  batch.features = device_features(features);
  batch.labels = labels;
  batch.state = state;
  batch.bad_label = bad_label;
  batch.plan = layout.plan;
  batch.num_blocks = layout.num_blocks;
  batch.scratch = layout.scratch;
  const int threads = device.threads_per_block();
  const auto blocks = [&](int64_t items, int64_t team = 1) {
    return blocks_for(device, items, team, threads);
  };
  const int64_t num_keys = layout.num_blocks * state.num_classes + 1;
  int key_bits = 1;
  while (key_bits < 32 && num_keys - 1 >= int64_t{1} << key_bits) ++key_bits;

  visit_labels(labels.data, labels.type, [&](const auto* values) {
    using Label = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
    device.launch(make_keys<Label>, blocks(num_rows), threads, batch);
  });
  device.sort(layout.temporary, layout.temporary_bytes, batch.scratch.keys,
              batch.scratch.sorted_keys, batch.scratch.rows, batch.scratch.sorted_rows, num_rows,
              key_bits);
  device.launch(find_slices, blocks(num_keys), threads, batch);
  device.launch(count_segments, blocks(layout.num_slots + 1), threads, batch);
  device.sum(layout.temporary, layout.temporary_bytes, batch.scratch.segment_counts,
             batch.scratch.first_segment, layout.num_slots + 1);
  device.launch(list_segments, blocks(layout.num_slots), threads, batch);
  visit_type(features.type, [&](auto type) {
    launch_sum_segments<decltype(type)::value>(device, features, batch, layout.max_segments);
  });
  const int team = team_size(features.num_columns, 4);
  device.launch(merge_segments, blocks(state.num_classes * layout.plan.num_strips, team), threads,
                batch, team);
  device.launch(add_to_state, blocks(state.num_classes, kWarpThreads), threads, batch);
  visit_labels(labels.data, labels.type, [&](const auto* values) {
    using Label = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
    device.launch(complete_bad_label<Label>, 1, kWarpThreads, batch);
  });
  return {};
}

}  // namespace deeprep::cuda
