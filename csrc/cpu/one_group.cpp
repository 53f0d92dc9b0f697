// The flow of class_moments for a batch in one group: few rows, or many classes. Its rows are
// sorted as one block, each class's slice is cut into segments, and these are formed side by side.
//
// Parallel axis: (consecutive segments, column tile), then (class, column tile).
#include <algorithm>
#include <vector>

#include "cpu/batch.h"
#include "cpu/parallel.h"

namespace deeprep {
namespace {

// Consecutive segments, of enough rows to be worth handing out: up to the first one of the next
// task.
struct Task {
  int64_t first_segment;
  int64_t begin;  // position of its first row
};

// Scratch of the calling thread, kept from call to call: a training loop that updates once a batch
// allocates nothing after the first. Large ones are given back.
struct Workspace {
  Worker caller;
  std::vector<Segment> segments;       // class by class
  std::vector<int64_t> first_segment;  // of each class that has rows; then their number
  std::vector<Task> tasks;             // one more than there are
  std::vector<double> growth;          // segments x strips
  std::vector<double> means;           // segments that wait x d

  static Workspace& of_this_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }
  int64_t num_bytes() const {
    return bytes_of(caller.classes) + caller.sorted.num_bytes() + bytes_of(caller.staging) +
           bytes_of(segments) + bytes_of(first_segment) + bytes_of(tasks) + bytes_of(growth) +
           bytes_of(means);
  }
  void trim() {
    constexpr size_t kKeptElements = 1 << 16;
    if (std::max({caller.classes.capacity(), growth.capacity(), means.capacity()}) >
        kKeptElements) {
      *this = Workspace();
    }
  }
};

// Gives large scratch back when the call that grew it ends, be it by an exception.
struct Trim {
  Workspace& workspace;
  ~Trim() { workspace.trim(); }
};

class OneGroup {
 public:
  OneGroup(const Batch& batch, Workspace& workspace) : batch_(batch), workspace_(workspace) {}

  bool merge() {
    more_workers_.resize(batch_.num_workers - 1);
    for (int w = 0; w < batch_.num_workers; ++w) batch_.reserve_staging(worker(w));
    batch_.reserve_rows(workspace_.caller, batch_.features.num_rows);
    if (!batch_.sort_rows(0, batch_.features.num_rows, workspace_.caller)) return false;
    cut_segments();
    place_segments();

    const std::vector<Task>& tasks = workspace_.tasks;
    const int64_t num_tasks = static_cast<int64_t>(tasks.size()) - 1;
    parallel_for(num_tasks * batch_.num_tiles, batch_.num_workers, [&](int64_t item, int w) {
      const int64_t tile = item % batch_.num_tiles;
      const int64_t task = item / batch_.num_tiles;
      int64_t begin = tasks[task].begin;
      for (int64_t s = tasks[task].first_segment; s < tasks[task + 1].first_segment; ++s) {
        const Segment& segment = workspace_.segments[s];
        sum_segment(segment, begin, tile, worker(w));
        begin += segment.num_rows;
      }
    });
    const int64_t num_classes = static_cast<int64_t>(workspace_.first_segment.size()) - 1;
    if (!workspace_.means.empty()) {
      parallel_for(num_classes * batch_.num_tiles, batch_.num_workers, [&](int64_t item, int) {
        batch_.merge_segments(first_of(item / batch_.num_tiles), item % batch_.num_tiles);
      });
    }
    for (int64_t i = 0; i < num_classes; ++i) batch_.add_to_state(first_of(i));
    return true;
  }

 private:
  Worker& worker(int w) { return w == 0 ? workspace_.caller : more_workers_[w - 1]; }

  // The first segment of the i-th class that has rows.
  const Segment& first_of(int64_t i) const {
    return workspace_.segments[workspace_.first_segment[i]];
  }

  // Lists the segments and the tasks.
  void cut_segments() {
    const int64_t enough_rows = std::max<int64_t>(kChunkRows, batch_.features.num_rows / 256);
    std::vector<Segment>& segments = workspace_.segments;
    const auto num_segments = [&] { return static_cast<int64_t>(segments.size()); };
    segments.clear();
    workspace_.first_segment.clear();
    workspace_.tasks.assign(1, {0, 0});
    for (const Slice& slice : workspace_.caller.sorted.slices) {
      workspace_.first_segment.push_back(num_segments());
      for (int64_t begin = slice.begin; begin < slice.end;) {
        if (begin - workspace_.tasks.back().begin >= enough_rows) {
          workspace_.tasks.push_back({num_segments(), begin});
        }
        const int64_t num_rows = rows_for_segment(0, slice.end - begin);
        segments.push_back({slice.class_index, num_rows, nullptr, nullptr, nullptr});
        begin += num_rows;
      }
    }
    workspace_.first_segment.push_back(num_segments());
    workspace_.tasks.push_back({num_segments(), 0});
  }

  // Strings the segments of each class together and gives them their scratch. Those of a class that
  // has several wait to be merged, a single one does not.
  void place_segments() {
    std::vector<Segment>& segments = workspace_.segments;
    const std::vector<int64_t>& first = workspace_.first_segment;
    int64_t num_waiting = 0;
    for (size_t i = 0; i + 1 < first.size(); ++i) {
      const int64_t several = first[i + 1] - first[i];
      if (several > 1) num_waiting += several;
    }
    workspace_.means.resize(num_waiting * batch_.features.num_columns);
    workspace_.growth.assign(segments.size() * batch_.plan.num_strips, 0.0);
    double* mean = workspace_.means.data();
    double* growth = workspace_.growth.data();
    for (size_t i = 0; i + 1 < first.size(); ++i) {
      for (int64_t s = first[i]; s < first[i + 1]; ++s) {
        segments[s].growth = growth;
        growth += batch_.plan.num_strips;
        if (first[i + 1] - first[i] == 1) continue;
        segments[s].mean = mean;
        mean += batch_.features.num_columns;
        if (s + 1 < first[i + 1]) segments[s].next = &segments[s + 1];
      }
    }
  }

  // Forms one tile of a segment, from its first row on, and merges it into the state unless it
  // waits.
  void sum_segment(const Segment& segment, int64_t begin, int64_t tile, Worker& worker) {
    double* growth = segment.growth + tile * kTileStrips;
    const auto merge = [&](int64_t n, double* mean) {
      batch_.merge_rows(workspace_.caller.sorted, begin, begin + segment.num_rows, tile, n, mean,
                        growth, worker);
    };
    const int64_t n = batch_.state.counts[segment.class_index];
    double* state_mean = batch_.state_mean(segment.class_index, tile);
    if (segment.mean != nullptr) {
      merge(0, segment.mean + tile * kTileColumns);
    } else if (n == 0) {
      merge(0, state_mean);  // the segment's moments are the state's
    } else if (segment.num_rows <= kChunkRows) {
      // Where classes are many the mean lies in no cache, and is needed when the chunk ends.
      for (int64_t j = 0; j < batch_.tile_columns(tile); j += 8) {
        __builtin_prefetch(state_mean + j, 1, 2);
      }
      merge(n, state_mean);  // a chunk merges as a segment does
    } else {
      alignas(64) double mean[kTileColumns];
      merge(0, mean);
      batch_.kernels.merge_means(mean, segment.num_rows, n, state_mean, batch_.tile_columns(tile),
                                 growth);
    }
  }

  const Batch& batch_;
  Workspace& workspace_;
  std::vector<Worker> more_workers_;  // the caller is the first
};

}  // namespace

int64_t kept_scratch_bytes() { return Workspace::of_this_thread().num_bytes(); }

bool merge_one_group(const Batch& batch) {
  Workspace& workspace = Workspace::of_this_thread();
  const Trim at_the_end{workspace};
  return OneGroup(batch, workspace).merge();
}

}  // namespace deeprep
