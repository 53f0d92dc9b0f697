// The flow of class_moments for a batch in several groups: each worker takes a group, block by
// block, and forms the segments of all classes in it; then classes are merged group by group.
//
// Parallel axis: groups, then classes.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/batch.h"
#include "cpu/parallel.h"
#include "cpu/row_order.h"

namespace deeprep {
namespace {

// The segments of one group of rows; allocated before anything is written.
struct Group {
  std::vector<Segment*> first;  // of each class, null: none
  std::vector<Segment*> last;
  std::vector<Segment> segments;    // in the order in which they were opened
  std::unique_ptr<double[]> means;  // x d; not initialised, a segment's first chunk overwrites it
  std::vector<double> growth;       // x strips

  explicit Group(const Batch& batch)
      : first(batch.state.num_classes, nullptr), last(batch.state.num_classes, nullptr) {
    // A class's segments but the last hold kSegmentRows or more.
    const int64_t most = batch.state.num_classes + batch.plan.group_rows / kSegmentRows;
    segments.reserve(most);  // and so they never move
    means.reset(new double[most * batch.features.num_columns]);
    growth.assign(most * batch.plan.num_strips, 0.0);
  }

  // The segment that takes the next rows of a class.
  Segment& open_segment(const Batch& batch, int64_t class_index) {
    Segment*& open = last[class_index];
    if (open != nullptr && open->num_rows < kSegmentRows) return *open;
    const int64_t s = static_cast<int64_t>(segments.size());
    segments.push_back({class_index, 0, means.get() + s * batch.features.num_columns,
                        growth.data() + s * batch.plan.num_strips, nullptr});
    (open != nullptr ? open->next : first[class_index]) = &segments[s];
    open = &segments[s];
    return *open;
  }
};

// Adds a slice to the open segment of its class, and to new ones.
void add_slice(const Batch& batch, const Slice& slice, Group& group, Worker& worker) {
  for (int64_t begin = slice.begin; begin < slice.end;) {
    Segment& segment = group.open_segment(batch, slice.class_index);
    const int64_t end = begin + rows_for_segment(segment.num_rows, slice.end - begin);
    for (int64_t tile = 0; tile < batch.num_tiles; ++tile) {
      batch.merge_rows(worker.sorted, begin, end, tile, segment.num_rows,
                       segment.mean + tile * kTileColumns, segment.growth + tile * kTileStrips,
                       worker);
    }
    segment.num_rows += end - begin;
    begin = end;
  }
}

// Merges a chunk into the open segment of its class.
void close_chunk(const Batch& batch, int64_t class_index, Group& group, OpenChunk& chunk) {
  Segment& segment = group.open_segment(batch, class_index);
  const int64_t num_rows = chunk.num_rows;
  batch.kernels.close_chunk[static_cast<int>(batch.features.type)](
      chunk, batch.features.num_columns, segment.num_rows, segment.mean, segment.growth);
  segment.num_rows += num_rows;
}

// As sum_group, in input order.
bool sum_group_as_it_comes(const Batch& batch, int64_t begin, int64_t end, Group& group,
                           Worker& worker) {
  const Features& features = batch.features;
  const int64_t row_stride_bytes = features.row_stride * size_of(features.type);
  const auto give_rows = batch.kernels.give_rows[static_cast<int>(features.type)];
  for (int64_t row = begin; row < end; row += batch.plan.block_rows) {
    const int64_t num_rows = std::min(batch.plan.block_rows, end - row);
    if (!batch.read_classes(row, num_rows, worker)) return false;
    const RowsInOrder rows = {static_cast<const char*>(features.data) + row * row_stride_bytes,
                              row_stride_bytes, features.num_columns, worker.classes.data()};
    for (int64_t i = 0; i < num_rows;) {
      i = give_rows(rows, i, num_rows, worker.chunks.data());
      const int32_t k = worker.classes[i - 1];
      if (k >= 0 && worker.chunks[k].num_rows == kChunkRows) {
        close_chunk(batch, k, group, worker.chunks[k]);
      }
    }
    for (int64_t k = 0; k < batch.state.num_classes; ++k) {
      if (worker.chunks[k].num_rows > 0) close_chunk(batch, k, group, worker.chunks[k]);
    }
  }
  return true;
}

// Forms the segments of the group's rows [begin, end); false where there is a bad label.
bool sum_group(const Batch& batch, int64_t begin, int64_t end, Group& group, Worker& worker) {
  if (!worker.chunks.empty()) return sum_group_as_it_comes(batch, begin, end, group, worker);
  for (int64_t row = begin; row < end; row += batch.plan.block_rows) {
    const int64_t num_rows = std::min(batch.plan.block_rows, end - row);
    if (!batch.sort_rows(row, num_rows, worker)) return false;
    for (const Slice& slice : worker.sorted.slices) add_slice(batch, slice, group, worker);
  }
  return true;
}

// Strings the segments of a class in all groups together and merges them.
void merge_class(const Batch& batch, std::vector<Group>& groups, int64_t class_index) {
  Segment* first = nullptr;
  Segment* last = nullptr;
  for (Group& group : groups) {
    if (group.first[class_index] == nullptr) continue;
    (last != nullptr ? last->next : first) = group.first[class_index];
    last = group.last[class_index];
  }
  if (first == nullptr) return;
  for (int64_t tile = 0; tile < batch.num_tiles; ++tile) batch.merge_segments(*first, tile);
  batch.add_to_state(*first);
}

}  // namespace

bool merge_several_groups(const Batch& batch) {
  std::vector<Group> groups;
  groups.reserve(batch.plan.num_groups);
  for (int64_t g = 0; g < batch.plan.num_groups; ++g) groups.emplace_back(batch);
  std::vector<Worker> workers(batch.num_workers);
  const bool in_input_order = visit_in_input_order(batch.features, batch.state.num_classes);
  for (Worker& worker : workers) {
    if (in_input_order) {
      batch.reserve_chunks(worker);
      continue;
    }
    batch.reserve_staging(worker);
    batch.reserve_rows(worker, batch.plan.block_rows);
  }
  std::atomic<bool> any_bad{false};
  parallel_for(batch.plan.num_groups, batch.num_workers, [&](int64_t g, int w) {
    const int64_t begin = g * batch.plan.group_rows;
    const int64_t end = std::min(begin + batch.plan.group_rows, batch.features.num_rows);
    if (!sum_group(batch, begin, end, groups[g], workers[w])) any_bad = true;
  });
  if (any_bad) return false;
  parallel_for(batch.state.num_classes, batch.num_workers,
               [&](int64_t k, int) { merge_class(batch, groups, k); });
  return true;
}

}  // namespace deeprep
