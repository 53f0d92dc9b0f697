// class_moments on the CPU: who does what. plan.h says what is computed, and in which order.
//
// Parallel axis: groups where there are several; (segments, column tile) where there is one.
//
// Rows are visited in class order, so that a class's accumulators stay in the first-level cache: a
// stable counting sort of a block's labels, then class by class. They are then scattered reads,
// which small blocks keep within few pages; not smaller, since closing the chunks of K classes
// costs K * d float64 updates a block. Tried and slower, two threads:
// - input order with the open chunks of all classes in the second-level cache: 1.05 to 1.2 x for
//   d = 64 and 128; five lines of accumulators move for each line of features;
// - prefetching the next block in sequence: slower in 5 of 6 cells, by up to 1.6 x, one thread;
// - one block a group: 1.07 x for d = 512, K = 100.
#include "class_moments.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/sorted_rows.h"
#include "plan.h"

namespace deeprep {
namespace {

// Below, starting a thread costs more than it saves.
constexpr int64_t kParallelBytes = 2 * 1024 * 1024;

// Row of the first label that is neither a class nor ignore_index; there is one.
int64_t find_invalid_label(const Labels& labels, int64_t num_classes) {
  return visit_labels(labels.data, labels.type, [&](const auto* values) {
    int64_t i = 0;
    while ((values[i] >= 0 && values[i] < num_classes) || values[i] == labels.ignore_index) ++i;
    return i;
  });
}

int64_t label_at(const Labels& labels, int64_t row) {
  return visit_labels(labels.data, labels.type,
                      [&](const auto* values) -> int64_t { return values[row]; });
}

// Rows of one class in class order, of one segment.
struct Segment {
  int64_t class_index;
  int64_t begin;  // positions in SortedRows
  int64_t end;
  double* means;  // d wide, where the segment waits to be merged; null: merge it at once
};

// Segments of one class: where its rows hold several, these are formed side by side.
struct SegmentedSlice {
  int64_t first;  // positions in the list of segments
  int64_t last;
};

// Scratch of one thread while it processes blocks of rows; allocated before anything is written.
struct Worker {
  std::vector<int32_t> classes;  // of a block's rows, -1 where ignored
  SortedRows sorted;
  std::vector<unsigned char> staging;  // column_stride != 1
  std::vector<double> mean;            // one tile of a segment that is merged at once
};

// Scratch of the calling thread for a batch in one group, kept from call to call: a training loop
// that updates once a batch allocates nothing after the first. Large ones are given back.
struct Workspace {
  Worker caller;
  std::vector<SegmentedSlice> slices;  // beside caller.sorted.slices
  std::vector<Segment> segments;
  std::vector<int64_t> batches;  // positions in `segments`
  std::vector<double> growth;    // of the sum of squares, x strips
  std::vector<double> means;     // of segments that wait

  static Workspace& of_this_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }
  void trim() {
    constexpr size_t kKept = 1 << 16;
    if (std::max({caller.classes.capacity(), growth.capacity(), means.capacity()}) > kKept) {
      *this = Workspace();
    }
  }
};

// The segments of one group of rows, of every class; allocated before anything is written.
struct Group {
  std::vector<int64_t> open;   // slot of each class's open segment, -1: none
  std::vector<int64_t> first;  // slot of each class's first segment, -1: none
  // By slot:
  std::vector<int64_t> next;  // the class's next segment, -1: none
  std::vector<int64_t> counts;
  std::vector<double> sumsq;        // x strips
  std::unique_ptr<double[]> means;  // x d; not initialised, a segment's first chunk overwrites it
  int64_t num_slots = 0;
};

class Pass {
 public:
  Pass(const Features& features, const Labels& labels, const ClassMoments& state, int num_threads)
      : features_(features),
        labels_(labels),
        state_(state),
        row_stride_bytes_(features.row_stride * size_of(features.type)),
        kernels_(active_kernels()),
        plan_(make_plan(features.num_rows, features.num_columns, features.type, state.num_classes)),
        num_tiles_(ceil_div(features.num_columns, kTileColumns)) {
    const double bytes = static_cast<double>(features.num_rows) *
                         static_cast<double>(features.num_columns * size_of(features.type));
    num_workers_ = bytes < kParallelBytes ? 1 : std::max(1, num_threads);
  }

  // False where a label is invalid; nothing is written then. May throw std::bad_alloc, likewise.
  bool run() {
    workspace_.trim();
    more_workers_.resize(num_workers_ - 1);
    for (int w = 0; w < num_workers_; ++w) {
      worker(w).mean.resize(kTileColumns);
      if (features_.column_stride != 1) {
        worker(w).staging.resize(kChunkRows * kTileColumns * size_of(features_.type));
      }
    }
    return plan_.num_groups == 1 ? run_single_group() : run_groups();
  }

 private:
  Worker& worker(int w) { return w == 0 ? workspace_.caller : more_workers_[w - 1]; }

  const char* row_at(int64_t row) const {
    return static_cast<const char*>(features_.data) + row * row_stride_bytes_;
  }

  int64_t tile_columns(int64_t tile) const {
    return std::min(kTileColumns, features_.num_columns - tile * kTileColumns);
  }

  // Classes of num_rows rows from first_row on; false where a label is invalid.
  bool read_classes(int64_t first_row, int64_t num_rows, int32_t* classes) const {
    return visit_labels(labels_.data, labels_.type, [&](const auto* values) {
      return kernels_.read_classes(values + first_row, num_rows, state_.num_classes,
                                   labels_.ignore_index, classes);
    });
  }

  // Merges sorted rows [begin, end) of one class on one tile into (n, mean of that tile).
  void merge_rows(const SortedRows& sorted, int64_t begin, int64_t end, int64_t tile,
                  MergeInto into, int64_t n, double* mean, double* growth, Worker& worker) const {
    const SliceOnTile rows = {sorted.rows.data() + begin, end - begin, features_.column_stride,
                              tile * kTileColumns, tile_columns(tile)};
    kernels_.merge_slice[static_cast<int>(features_.type)](rows, into, n, mean, growth,
                                                           worker.staging.data());
  }

  double* state_mean(int64_t k, int64_t tile) const {
    return state_.means + k * features_.num_columns + tile * kTileColumns;
  }

  // ---------------------------------------------------------------- one group

  bool run_single_group() {
    std::vector<int32_t>& classes = workspace_.caller.classes;
    SortedRows& sorted = workspace_.caller.sorted;
    classes.resize(features_.num_rows);
    if (!read_classes(0, features_.num_rows, classes.data())) return false;
    sorted.reserve(features_.num_rows, state_.num_classes);
    sorted.sort(classes.data(), row_at(0), row_stride_bytes_, features_.num_rows);
    cut_segments();

    const std::vector<Segment>& segments = workspace_.segments;
    workspace_.growth.assign(segments.size() * plan_.num_strips, 0.0);
    const int64_t num_batches = static_cast<int64_t>(workspace_.batches.size()) - 1;
    parallel_for(num_batches * num_tiles_, num_workers_, [&](int64_t item, int w) {
      const int64_t tile = item % num_tiles_;
      const int64_t batch = item / num_tiles_;
      for (int64_t s = workspace_.batches[batch]; s < workspace_.batches[batch + 1]; ++s) {
        sum_segment(s, tile, worker(w));
      }
    });
    const int64_t num_slices = static_cast<int64_t>(workspace_.slices.size());
    if (!workspace_.means.empty()) {
      parallel_for(num_slices * num_tiles_, num_workers_, [&](int64_t item, int) {
        merge_waiting(workspace_.slices[item / num_tiles_], item % num_tiles_);
      });
    }
    for (const SegmentedSlice& slice : workspace_.slices) {
      const int64_t k = segments[slice.first].class_index;
      state_.counts[k] += segments[slice.last - 1].end - segments[slice.first].begin;
      for (int64_t strip = 0; strip < plan_.num_strips; ++strip) {
        double total = 0;
        for (int64_t s = slice.first; s < slice.last; ++s) {
          total += workspace_.growth[s * plan_.num_strips + strip];
        }
        state_.sumsq[k] += total;
      }
    }
    return true;
  }

  // The growth of segment s from a tile on.
  double* growth_of(int64_t s, int64_t tile) {
    return workspace_.growth.data() + s * plan_.num_strips + tile * kTileStrips;
  }

  // Lists the segments, and cuts the list into batches of enough rows to be worth handing out.
  void cut_segments() {
    const int64_t enough_rows = std::max<int64_t>(kChunkRows, features_.num_rows / 256);
    workspace_.slices.clear();
    workspace_.segments.clear();
    workspace_.batches.assign(1, 0);
    int64_t num_waiting = 0;
    int64_t batch_begin = 0;
    for (const Slice& slice : workspace_.caller.sorted.slices) {
      const int64_t first = static_cast<int64_t>(workspace_.segments.size());
      for (int64_t begin = slice.begin; begin < slice.end;) {
        const int64_t end = begin + rows_for_segment(0, slice.end - begin);
        workspace_.segments.push_back({slice.class_index, begin, end, nullptr});
        begin = end;
        if (end - batch_begin >= enough_rows) {
          workspace_.batches.push_back(static_cast<int64_t>(workspace_.segments.size()));
          batch_begin = end;
        }
      }
      const int64_t last = static_cast<int64_t>(workspace_.segments.size());
      workspace_.slices.push_back({first, last});
      if (last - first > 1) num_waiting += last - first;
    }
    const int64_t num_segments = static_cast<int64_t>(workspace_.segments.size());
    if (workspace_.batches.back() < num_segments) workspace_.batches.push_back(num_segments);

    workspace_.means.resize(num_waiting * features_.num_columns);
    double* means = workspace_.means.data();
    for (const SegmentedSlice& slice : workspace_.slices) {
      for (int64_t s = slice.first; slice.last - slice.first > 1 && s < slice.last; ++s) {
        workspace_.segments[s].means = means;
        means += features_.num_columns;
      }
    }
  }

  // Forms one tile of a segment, and merges it into the state if it need not wait.
  void sum_segment(int64_t s, int64_t tile, Worker& worker) {
    const Segment& segment = workspace_.segments[s];
    double* growth = growth_of(s, tile);
    const auto merge = [&](MergeInto into, int64_t n, double* mean) {
      merge_rows(workspace_.caller.sorted, segment.begin, segment.end, tile, into, n, mean, growth,
                 worker);
    };
    const int64_t n = state_.counts[segment.class_index];
    const int64_t rows = segment.end - segment.begin;
    double* mean = state_mean(segment.class_index, tile);
    if (segment.means != nullptr) {
      merge(MergeInto::kSegment, 0, segment.means + tile * kTileColumns);
    } else if (n == 0) {
      merge(MergeInto::kSegment, 0,
            mean);  // nothing is there: the segment's moments are the state's
    } else if (rows <= kChunkRows) {
      merge(MergeInto::kState, n, mean);
    } else {
      merge(MergeInto::kSegment, 0, worker.mean.data());
      kernels_.merge_means(worker.mean.data(), rows, n, mean, tile_columns(tile), growth);
    }
  }

  // Merges one tile of a class's waiting segments, in order.
  void merge_waiting(const SegmentedSlice& slice, int64_t tile) {
    const int64_t k = workspace_.segments[slice.first].class_index;
    int64_t n = state_.counts[k];
    for (int64_t s = slice.first; s < slice.last; ++s) {
      const Segment& segment = workspace_.segments[s];
      if (segment.means == nullptr) return;
      const int64_t rows = segment.end - segment.begin;
      kernels_.merge_means(segment.means + tile * kTileColumns, rows, n, state_mean(k, tile),
                           tile_columns(tile), growth_of(s, tile));
      n += rows;
    }
  }

  // ---------------------------------------------------------------- several groups

  bool run_groups() {
    std::vector<Group> groups(plan_.num_groups);
    for (Group& group : groups) allocate(group);
    for (int w = 0; w < num_workers_; ++w) {
      worker(w).classes.resize(plan_.block_rows);
      worker(w).sorted.reserve(plan_.block_rows, state_.num_classes);
    }
    std::atomic<bool> valid{true};
    parallel_for(plan_.num_groups, num_workers_, [&](int64_t group, int w) {
      const int64_t begin = group * plan_.group_rows;
      const int64_t end = std::min(begin + plan_.group_rows, features_.num_rows);
      if (!run_group(groups[group], begin, end, worker(w))) valid = false;
    });
    if (!valid) return false;
    parallel_for(state_.num_classes, num_workers_,
                 [&](int64_t k, int) { merge_groups(groups, k); });
    return true;
  }

  void allocate(Group& group) const {
    // A class's segments but the last hold kSegmentRows or more.
    const int64_t slots = state_.num_classes + plan_.group_rows / kSegmentRows;
    group.open.assign(state_.num_classes, -1);
    group.first.assign(state_.num_classes, -1);
    group.next.assign(slots, -1);
    group.counts.assign(slots, 0);
    group.sumsq.assign(slots * plan_.num_strips, 0.0);
    group.means.reset(new double[slots * features_.num_columns]);
  }

  bool run_group(Group& group, int64_t begin, int64_t end, Worker& worker) const {
    for (int64_t row = begin; row < end; row += plan_.block_rows) {
      const int64_t num_rows = std::min(plan_.block_rows, end - row);
      if (!read_classes(row, num_rows, worker.classes.data())) return false;
      worker.sorted.sort(worker.classes.data(), row_at(row), row_stride_bytes_, num_rows);
      for (const Slice& slice : worker.sorted.slices) add_slice(group, slice, worker);
    }
    return true;
  }

  // Adds one class's rows in a block to the class's open segment, and to new ones.
  void add_slice(Group& group, const Slice& slice, Worker& worker) const {
    for (int64_t begin = slice.begin; begin < slice.end;) {
      const int64_t slot = open_segment(group, slice.class_index);
      int64_t& count = group.counts[slot];
      const int64_t end = begin + rows_for_segment(count, slice.end - begin);
      for (int64_t tile = 0; tile < num_tiles_; ++tile) {
        double* mean = group.means.get() + slot * features_.num_columns + tile * kTileColumns;
        double* growth = group.sumsq.data() + slot * plan_.num_strips + tile * kTileStrips;
        merge_rows(worker.sorted, begin, end, tile, MergeInto::kSegment, count, mean, growth,
                   worker);
      }
      count += end - begin;
      begin = end;
    }
  }

  static int64_t open_segment(Group& group, int64_t k) {
    const int64_t open = group.open[k];
    if (open >= 0 && group.counts[open] < kSegmentRows) return open;
    const int64_t slot = group.num_slots++;
    (open >= 0 ? group.next[open] : group.first[k]) = slot;
    group.open[k] = slot;
    return slot;
  }

  void merge_groups(std::vector<Group>& groups, int64_t k) const {
    int64_t n = 0;
    for (int64_t tile = 0; tile < num_tiles_; ++tile) {
      n = state_.counts[k];
      double total[kTileStrips] = {};
      const int64_t strips = ceil_div(tile_columns(tile), kStripColumns);
      for (Group& group : groups) {
        for (int64_t slot = group.first[k]; slot >= 0; slot = group.next[slot]) {
          const double* mean =
              group.means.get() + slot * features_.num_columns + tile * kTileColumns;
          double* growth = group.sumsq.data() + slot * plan_.num_strips + tile * kTileStrips;
          kernels_.merge_means(mean, group.counts[slot], n, state_mean(k, tile), tile_columns(tile),
                               growth);
          for (int64_t strip = 0; strip < strips; ++strip) total[strip] += growth[strip];
          n += group.counts[slot];
        }
      }
      for (int64_t strip = 0; strip < strips; ++strip) state_.sumsq[k] += total[strip];
    }
    state_.counts[k] = n;
  }

  const Features& features_;
  const Labels& labels_;
  const ClassMoments& state_;
  const int64_t row_stride_bytes_;
  const Kernels& kernels_;
  const Plan plan_;
  const int64_t num_tiles_;
  int num_workers_;
  Workspace& workspace_ = Workspace::of_this_thread();
  std::vector<Worker> more_workers_;  // the caller is the first
};

}  // namespace

Status class_moments(const Features& features, const Labels& labels, const ClassMoments& state,
                     int num_threads) {
  if (features.num_rows == 0) return {};
  try {
    if (Pass(features, labels, state, num_threads).run()) return {};
  } catch (const std::bad_alloc&) {
    return {Code::kOutOfMemory};
  }
  const int64_t row = find_invalid_label(labels, state.num_classes);
  return {Code::kLabelOutOfRange, row, label_at(labels, row)};
}

}  // namespace deeprep
