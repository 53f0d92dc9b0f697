// The rows of a block in class order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace deeprep {

// The rows of one class within a block: positions [begin, end) of the sorted rows.
struct Run {
  int64_t class_index;
  int64_t begin;
  int64_t end;
};

// Row indices in class order, input order within a class, and the non-empty classes.
struct SortedRows {
  std::vector<int64_t> rows;
  std::vector<Run> runs;

  // Everything is allocated here, so that sort() cannot fail.
  void reserve(int64_t max_rows, int64_t num_classes) {
    rows.resize(max_rows);
    runs.reserve(std::min(max_rows, num_classes));
    // With far fewer rows than classes, never touch K counters.
    if (num_classes <= 8 * max_rows) offsets_.resize(num_classes);
  }

  // classes: of the rows first_row, first_row + 1, ...; -1 to leave a row out.
  void sort(const int32_t* classes, int64_t first_row, int64_t num_rows) {
    runs.clear();
    if (offsets_.empty()) {
      sort_by_comparison(classes, first_row, num_rows);
    } else {
      sort_by_counting(classes, first_row, num_rows);
    }
  }

 private:
  void sort_by_comparison(const int32_t* classes, int64_t first_row, int64_t num_rows) {
    int64_t kept = 0;
    for (int64_t i = 0; i < num_rows; ++i) {
      if (classes[i] >= 0) rows[kept++] = i;
    }
    std::sort(rows.begin(), rows.begin() + kept, [classes](int64_t a, int64_t b) {
      return classes[a] != classes[b] ? classes[a] < classes[b] : a < b;
    });
    for (int64_t i = 0; i < kept; ++i) {
      const int64_t k = classes[rows[i]];
      if (runs.empty() || runs.back().class_index != k) runs.push_back({k, i, i});
      runs.back().end = i + 1;
      rows[i] += first_row;
    }
  }

  void sort_by_counting(const int32_t* classes, int64_t first_row, int64_t num_rows) {
    std::fill(offsets_.begin(), offsets_.end(), 0);
    for (int64_t i = 0; i < num_rows; ++i) {
      if (classes[i] >= 0) ++offsets_[classes[i]];
    }
    int64_t begin = 0;
    for (int64_t k = 0; k < static_cast<int64_t>(offsets_.size()); ++k) {
      const int64_t count = offsets_[k];
      if (count > 0) runs.push_back({k, begin, begin + count});
      offsets_[k] = begin;
      begin += count;
    }
    for (int64_t i = 0; i < num_rows; ++i) {
      if (classes[i] >= 0) rows[offsets_[classes[i]]++] = first_row + i;
    }
  }

  std::vector<int64_t> offsets_;
};

}  // namespace deeprep
