// class_moments on the CPU: how rows are ordered, split and shared among threads.
//
// The order of operations that defines the result (a function of N, d, K and the labels alone):
//   1. Rows are cut into blocks, blocks into at most kMaxGroups groups of consecutive blocks.
//   2. Within a block, each class's rows, in input order, form chunks of kChunkRows (moments.h);
//      chunks merge one after the other into the group's own moments, tile by tile of columns.
//   3. Groups merge into the running state in order.
// With few rows per class there is a single group, and its chunks merge straight into the state.
//
// Parallel axis: groups where there are several; (classes, column tile) where there is one. Both
// orders of a block's rows by class come from one stable counting sort of its labels.
//
// Why blocks: rows visited in class order across the whole matrix are scattered reads, a block is
// small enough that they come from the cache, or at least from few pages. Why not smaller blocks:
// closing the chunks of K classes costs K * d float64 updates a block; kRowsPerClass keeps that
// below a few per cent of reading the block.
#include "class_moments.h"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace deeprep {
namespace {

constexpr int64_t kMaxGroups = 64;
constexpr int64_t kRowsPerClass = 256;
constexpr int64_t kBlockBytes = 512 * 1024;  // half a second-level cache
constexpr int64_t kParallelBytes =
    2 * 1024 * 1024;  // below, starting a thread costs more than it saves

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  int64_t block_rows;
  int64_t num_groups;
  int64_t group_rows;  // a multiple of block_rows
};

Plan make_plan(const Features& features, int64_t num_classes) {
  const int64_t row_bytes = features.num_columns * size_of(features.type);
  const int64_t rows = features.num_rows;
  const int64_t block = std::max(kRowsPerClass * num_classes, kBlockBytes / row_bytes);
  if (rows < 2 * block) return {rows, 1, rows};
  const int64_t group = ceil_div(ceil_div(rows, block), kMaxGroups) * block;
  return {block, ceil_div(rows, group), group};
}

// Row of the first label that is neither a class nor ignore_index, or -1.
template <typename Label>
int64_t find_invalid_label(const Label* labels, int64_t num_rows, int64_t num_classes,
                           int64_t ignore_index) {
  constexpr int64_t kStep = 4096;  // check without branches, look closer only where needed
  for (int64_t begin = 0; begin < num_rows; begin += kStep) {
    const int64_t end = std::min(begin + kStep, num_rows);
    const auto invalid = [&](int64_t i) {
      const int64_t label = labels[i];
      return (label < 0 || label >= num_classes) && label != ignore_index;
    };
    bool any = false;
    for (int64_t i = begin; i < end; ++i) any |= invalid(i);
    for (int64_t i = begin; any && i < end; ++i) {
      if (invalid(i)) return i;
    }
  }
  return -1;
}

// The rows of one class within a block: positions [begin, end) of the sorted rows.
struct Run {
  int64_t class_index;
  int64_t begin;
  int64_t end;
};

// Row indices of a block in class order, input order within a class, and its non-empty classes.
struct SortedRows {
  std::vector<int64_t> rows;
  std::vector<Run> runs;
  std::vector<int64_t> offsets;  // scratch of the counting sort

  // Everything is allocated here, so that sort() cannot fail.
  void reserve(int64_t max_rows, int64_t num_classes) {
    rows.resize(max_rows);
    runs.reserve(std::min(max_rows, num_classes));
    if (!few_rows(max_rows, num_classes)) offsets.resize(num_classes);
  }

  template <typename Label>
  void sort(const Label* labels, int64_t first_row, int64_t num_rows, int64_t num_classes) {
    runs.clear();
    const auto has_class = [&](int64_t i) { return labels[i] >= 0 && labels[i] < num_classes; };
    if (offsets.empty()) {  // far fewer rows than classes: never touch K counters
      int64_t kept = 0;
      for (int64_t i = first_row; i < first_row + num_rows; ++i) {
        if (has_class(i)) rows[kept++] = i;
      }
      std::sort(rows.begin(), rows.begin() + kept, [labels](int64_t a, int64_t b) {
        return labels[a] != labels[b] ? labels[a] < labels[b] : a < b;
      });
      for (int64_t i = 0; i < kept; ++i) {
        const int64_t label = labels[rows[i]];
        if (runs.empty() || runs.back().class_index != label) runs.push_back({label, i, i});
        runs.back().end = i + 1;
      }
      return;
    }
    std::fill(offsets.begin(), offsets.end(), 0);
    for (int64_t i = first_row; i < first_row + num_rows; ++i) {
      if (has_class(i)) ++offsets[labels[i]];
    }
    int64_t begin = 0;
    for (int64_t k = 0; k < num_classes; ++k) {
      const int64_t count = offsets[k];
      if (count > 0) runs.push_back({k, begin, begin + count});
      offsets[k] = begin;
      begin += count;
    }
    for (int64_t i = first_row; i < first_row + num_rows; ++i) {
      if (has_class(i)) rows[offsets[labels[i]]++] = i;
    }
  }

 private:
  static bool few_rows(int64_t num_rows, int64_t num_classes) { return num_classes > 8 * num_rows; }
};

class Pass {
 public:
  Pass(const Features& features, const Labels& labels, const ClassMoments& state, int num_threads)
      : features_(features),
        labels_(labels),
        state_(state),
        kernels_(active_kernels()),
        plan_(make_plan(features, state.num_classes)),
        num_tiles_(ceil_div(features.num_columns, kTileColumns)) {
    const double bytes = static_cast<double>(features.num_rows) *
                         static_cast<double>(features.num_columns * size_of(features.type));
    num_workers_ = bytes < kParallelBytes ? 1 : std::max(1, num_threads);
  }

  // May throw std::bad_alloc; the state is written only after the last allocation.
  void run() {
    if (features_.column_stride != 1) {
      staging_.resize(num_workers_);
      for (auto& buffer : staging_) {
        buffer.resize(kChunkRows * kTileColumns * size_of(features_.type));
      }
    }
    if (plan_.num_groups == 1) {
      run_single_group();
    } else {
      run_groups();
    }
  }

 private:
  int64_t tile_columns(int64_t tile) const {
    return std::min(kTileColumns, features_.num_columns - tile * kTileColumns);
  }

  void sort_rows(SortedRows& sorted, int64_t first_row, int64_t num_rows) const {
    visit_labels(labels_.data, labels_.type, [&](const auto* labels) {
      sorted.sort(labels, first_row, num_rows, state_.num_classes);
    });
  }

  // Merges one class's rows on one tile into (n, means of that class).
  double merge_tile(const SortedRows& sorted, const Run& run, int64_t tile, int64_t n,
                    double* class_mean, int worker) {
    const RunOfRows rows = {features_.data,       sorted.rows.data() + run.begin,
                            run.end - run.begin,  sorted.runs.back().end - run.end,
                            features_.row_stride, features_.column_stride,
                            tile * kTileColumns,  tile_columns(tile)};
    void* staging = staging_.empty() ? nullptr : staging_[worker].data();
    return kernels_.merge_run[static_cast<int>(features_.type)](
        rows, n, class_mean + tile * kTileColumns, staging);
  }

  void run_single_group() {
    SortedRows sorted;
    sorted.reserve(features_.num_rows, state_.num_classes);
    sort_rows(sorted, 0, features_.num_rows);
    const int64_t num_runs = static_cast<int64_t>(sorted.runs.size());
    std::vector<double> growth(num_runs * num_tiles_);

    // Neighbouring classes share a work item until it holds enough rows to be worth handing out.
    std::vector<int64_t> batches = {0};
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
                       state_.means + run.class_index * features_.num_columns, worker);
      }
    });
    for (int64_t r = 0; r < num_runs; ++r) {
      const Run& run = sorted.runs[r];
      state_.counts[run.class_index] += run.end - run.begin;
      for (int64_t tile = 0; tile < num_tiles_; ++tile) {
        state_.sumsq[run.class_index] += growth[r * num_tiles_ + tile];
      }
    }
  }

  void run_groups() {
    const int64_t num_classes = state_.num_classes;
    const int64_t columns = features_.num_columns;
    std::vector<int64_t> counts(plan_.num_groups * num_classes);
    std::vector<double> sumsq(plan_.num_groups * num_classes);
    // Not initialised: the first chunk of a class overwrites its mean.
    const std::unique_ptr<double[]> means(new double[plan_.num_groups * num_classes * columns]);
    std::vector<SortedRows> sorted(num_workers_);
    for (SortedRows& each : sorted) each.reserve(plan_.block_rows, num_classes);

    parallel_for(plan_.num_groups, num_workers_, [&](int64_t group, int worker) {
      const int64_t end = std::min((group + 1) * plan_.group_rows, features_.num_rows);
      for (int64_t row = group * plan_.group_rows; row < end; row += plan_.block_rows) {
        sort_rows(sorted[worker], row, std::min(plan_.block_rows, end - row));
        for (const Run& run : sorted[worker].runs) {
          const int64_t slot = group * num_classes + run.class_index;
          for (int64_t tile = 0; tile < num_tiles_; ++tile) {
            sumsq[slot] += merge_tile(sorted[worker], run, tile, counts[slot],
                                      means.get() + slot * columns, worker);
          }
          counts[slot] += run.end - run.begin;
        }
      }
    });

    parallel_for(num_classes, num_workers_, [&](int64_t k, int) {
      for (int64_t group = 0; group < plan_.num_groups; ++group) {
        const int64_t slot = group * num_classes + k;
        if (counts[slot] == 0) continue;
        state_.sumsq[k] += sumsq[slot];
        for (int64_t tile = 0; tile < num_tiles_; ++tile) {
          const int64_t column = tile * kTileColumns;
          state_.sumsq[k] += kernels_.merge_means(
              means.get() + slot * columns + column, counts[slot], state_.counts[k],
              state_.means + k * columns + column, tile_columns(tile));
        }
        state_.counts[k] += counts[slot];
      }
    });
  }

  const Features& features_;
  const Labels& labels_;
  const ClassMoments& state_;
  const Kernels& kernels_;
  const Plan plan_;
  const int64_t num_tiles_;
  int num_workers_;
  std::vector<std::vector<unsigned char>> staging_;  // one per worker
};

}  // namespace

Status class_moments(const Features& features, const Labels& labels, const ClassMoments& state,
                     int num_threads) {
  if (features.num_rows == 0) return {};
  const int64_t invalid = visit_labels(labels.data, labels.type, [&](const auto* values) {
    return find_invalid_label(values, features.num_rows, state.num_classes, labels.ignore_index);
  });
  if (invalid >= 0) {
    const int64_t value = visit_labels(
        labels.data, labels.type, [&](const auto* values) -> int64_t { return values[invalid]; });
    return {Code::kLabelOutOfRange, invalid, value};
  }
  try {
    Pass(features, labels, state, num_threads).run();
  } catch (const std::bad_alloc&) {
    return {Code::kOutOfMemory};
  }
  return {};
}

}  // namespace deeprep
