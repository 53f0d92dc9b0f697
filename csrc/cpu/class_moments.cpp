// class_moments on the CPU: how rows are ordered, split and shared among threads.
//
// The order of operations that defines the result (a function of N, d, K, the element type and the
// labels alone):
//   1. Rows are cut into at most kMaxGroups groups of consecutive rows, groups into blocks.
//   2. Within a block, each class's rows, in input order, form chunks of kChunkRows (moments.h);
//      chunks merge one after the other into the group's own moments, tile by tile of columns.
//   3. Groups merge into the running state in order.
// With few rows per class there is a single group, and its chunks merge straight into the state.
//
// Parallel axis: groups where there are several; (classes, column tile) where there is one.
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

namespace deeprep {
namespace {

constexpr int64_t kMaxGroups = 64;
constexpr int64_t kGroupRowsPerClass = 256;  // a group must outweigh its moments, K x d
constexpr int64_t kBlockRowsPerClass = 32;  // a block must outweigh closing the chunks of K classes
constexpr int64_t kBlockBytes = 128 * 1024;
// Below, starting a thread costs more than it saves.
constexpr int64_t kParallelBytes = 2 * 1024 * 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  int64_t num_groups;
  int64_t group_rows;  // a multiple of block_rows
  int64_t block_rows;
};

Plan make_plan(const Features& features, int64_t num_classes) {
  const int64_t rows = features.num_rows;
  const int64_t row_bytes = features.num_columns * size_of(features.type);
  const int64_t block = std::max(kBlockRowsPerClass * num_classes, kBlockBytes / row_bytes);
  const int64_t least = std::max(kGroupRowsPerClass * num_classes, block);
  if (rows < 2 * least) return {1, rows, rows};
  const int64_t group = ceil_div(std::max(least, ceil_div(rows, kMaxGroups)), block) * block;
  return {ceil_div(rows, group), group, block};
}

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

// What one thread needs to process blocks of rows; allocated before anything is written.
struct Worker {
  std::vector<int32_t> classes;  // of a block's rows, -1 where ignored
  SortedRows sorted;
  std::vector<unsigned char> staging;  // column_stride != 1
};

// Scratch of the calling thread, kept from call to call: a training loop that updates once a batch
// allocates nothing after the first. Large ones are given back.
struct Workspace {
  std::vector<int32_t> classes;
  SortedRows sorted;
  std::vector<int64_t> batches;
  std::vector<double> growth;

  static Workspace& of_this_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }
  void trim() {
    constexpr size_t kKeptRows = 1 << 16;
    if (classes.capacity() > kKeptRows || growth.capacity() > kKeptRows) *this = Workspace();
  }
};

class Pass {
 public:
  Pass(const Features& features, const Labels& labels, const ClassMoments& state, int num_threads)
      : features_(features),
        labels_(labels),
        state_(state),
        row_stride_(features.row_stride * size_of(features.type)),
        kernels_(active_kernels()),
        plan_(make_plan(features, state.num_classes)),
        num_tiles_(ceil_div(features.num_columns, kTileColumns)) {
    const double bytes = static_cast<double>(features.num_rows) *
                         static_cast<double>(features.num_columns * size_of(features.type));
    num_workers_ = bytes < kParallelBytes ? 1 : std::max(1, num_threads);
  }

  // False where a label is invalid; nothing is written then. May throw std::bad_alloc, likewise.
  bool run() {
    workers_.resize(num_workers_);
    for (Worker& worker : workers_) {
      if (features_.column_stride != 1) {
        worker.staging.resize(kChunkRows * kTileColumns * size_of(features_.type));
      }
    }
    return plan_.num_groups == 1 ? run_single_group() : run_groups();
  }

 private:
  const char* row_at(int64_t row) const {
    return static_cast<const char*>(features_.data) + row * row_stride_;
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

  // Merges one class's rows on one tile into (n, means of that class).
  double merge_tile(const SortedRows& sorted, const Run& run, int64_t tile, int64_t n,
                    double* class_mean, Worker& worker) {
    const RunOfRows rows = {sorted.rows.data() + run.begin, run.end - run.begin,
                            features_.column_stride, tile * kTileColumns, tile_columns(tile)};
    return kernels_.merge_run[static_cast<int>(features_.type)](
        rows, n, class_mean + tile * kTileColumns, worker.staging.data());
  }

  bool run_single_group() {
    Workspace& workspace = Workspace::of_this_thread();
    workspace.trim();
    workspace.classes.resize(features_.num_rows);
    if (!read_classes(0, features_.num_rows, workspace.classes.data())) return false;
    SortedRows& sorted = workspace.sorted;
    sorted.reserve(features_.num_rows, state_.num_classes);
    sorted.sort(workspace.classes.data(), row_at(0), row_stride_, features_.num_rows);
    const int64_t num_runs = static_cast<int64_t>(sorted.runs.size());
    std::vector<double>& growth = workspace.growth;
    growth.resize(num_runs * num_tiles_);

    // Neighbouring classes share a work item until it holds enough rows to be worth handing out.
    std::vector<int64_t>& batches = workspace.batches;
    batches.assign(1, 0);
    const int64_t enough_rows = std::max<int64_t>(kChunkRows, features_.num_rows / 256);
    for (int64_t r = 0; r < num_runs; ++r) {
      const bool last = r + 1 == num_runs;
      if (last || sorted.runs[r].end - sorted.runs[batches.back()].begin >= enough_rows) {
        batches.push_back(r + 1);
      }
    }
    const int64_t num_batches = static_cast<int64_t>(batches.size()) - 1;
    parallel_for(num_batches * num_tiles_, num_workers_, [&](int64_t item, int worker) {
      const int64_t tile = item % num_tiles_;
      const int64_t batch = item / num_tiles_;
      for (int64_t r = batches[batch]; r < batches[batch + 1]; ++r) {
        const Run& run = sorted.runs[r];
        growth[r * num_tiles_ + tile] =
            merge_tile(sorted, run, tile, state_.counts[run.class_index],
                       state_.means + run.class_index * features_.num_columns, workers_[worker]);
      }
    });
    for (int64_t r = 0; r < num_runs; ++r) {
      const Run& run = sorted.runs[r];
      state_.counts[run.class_index] += run.end - run.begin;
      for (int64_t tile = 0; tile < num_tiles_; ++tile) {
        state_.sumsq[run.class_index] += growth[r * num_tiles_ + tile];
      }
    }
    return true;
  }

  // The moments of every group, K slots each.
  struct Groups {
    std::vector<int64_t> counts;
    std::vector<double> sumsq;
    std::unique_ptr<double[]> means;  // not initialised: a class's first chunk overwrites its mean
  };

  bool run_groups() {
    const int64_t num_classes = state_.num_classes;
    const int64_t slots = plan_.num_groups * num_classes;
    Groups groups = {std::vector<int64_t>(slots), std::vector<double>(slots),
                     std::unique_ptr<double[]>(new double[slots * features_.num_columns])};
    for (Worker& worker : workers_) {
      worker.classes.resize(plan_.block_rows);
      worker.sorted.reserve(plan_.block_rows, num_classes);
    }
    std::atomic<bool> valid{true};
    parallel_for(plan_.num_groups, num_workers_, [&](int64_t group, int worker) {
      const int64_t begin = group * plan_.group_rows;
      const int64_t end = std::min(begin + plan_.group_rows, features_.num_rows);
      if (!run_group(groups, group, begin, end, workers_[worker])) valid = false;
    });
    if (!valid) return false;
    parallel_for(num_classes, num_workers_, [&](int64_t k, int) { merge_groups(groups, k); });
    return true;
  }

  bool run_group(Groups& groups, int64_t group, int64_t begin, int64_t end, Worker& worker) {
    for (int64_t row = begin; row < end; row += plan_.block_rows) {
      const int64_t num_rows = std::min(plan_.block_rows, end - row);
      if (!read_classes(row, num_rows, worker.classes.data())) return false;
      worker.sorted.sort(worker.classes.data(), row_at(row), row_stride_, num_rows);
      for (const Run& run : worker.sorted.runs) {
        const int64_t slot = group * state_.num_classes + run.class_index;
        for (int64_t tile = 0; tile < num_tiles_; ++tile) {
          groups.sumsq[slot] +=
              merge_tile(worker.sorted, run, tile, groups.counts[slot],
                         groups.means.get() + slot * features_.num_columns, worker);
        }
        groups.counts[slot] += run.end - run.begin;
      }
    }
    return true;
  }

  void merge_groups(const Groups& groups, int64_t k) {
    const int64_t columns = features_.num_columns;
    for (int64_t group = 0; group < plan_.num_groups; ++group) {
      const int64_t slot = group * state_.num_classes + k;
      if (groups.counts[slot] == 0) continue;
      state_.sumsq[k] += groups.sumsq[slot];
      for (int64_t tile = 0; tile < num_tiles_; ++tile) {
        const int64_t column = tile * kTileColumns;
        state_.sumsq[k] += kernels_.merge_means(
            groups.means.get() + slot * columns + column, groups.counts[slot], state_.counts[k],
            state_.means + k * columns + column, tile_columns(tile));
      }
      state_.counts[k] += groups.counts[slot];
    }
  }

  const Features& features_;
  const Labels& labels_;
  const ClassMoments& state_;
  const int64_t row_stride_;  // in bytes
  const Kernels& kernels_;
  const Plan plan_;
  const int64_t num_tiles_;
  int num_workers_;
  std::vector<Worker> workers_;
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
