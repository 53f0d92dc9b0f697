// The rows of a block in class order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"

namespace deeprep {

// Bytes that a vector holds.
template <typename T>
int64_t bytes_of(const std::vector<T>& held) {
  return static_cast<int64_t>(held.capacity() * sizeof(T));
}

// The rows of one class in a block (plan.h): positions [begin, end) of the sorted rows.
struct Slice {
  int64_t class_index;
  int64_t begin;
  int64_t end;
};

// Pointers to the rows in class order, input order within a class, and the non-empty classes.
struct SortedRows {
  std::vector<const char*> rows;  // kRowsAhead repetitions of the last one follow
  std::vector<Slice> slices;

  // Everything is allocated here, so that sort() cannot fail.
  void reserve(int64_t max_rows, int64_t num_classes) {
    rows.resize(max_rows + kRowsAhead);
    kept_.reserve(num_classes <= 8 * max_rows ? 0 : max_rows);
    slices.reserve(std::min(max_rows, num_classes));
    // With far fewer rows than classes, never touch K counters.
    offsets_.resize(num_classes <= 8 * max_rows ? num_classes : 0);
  }

  // classes: of the rows at first_row, first_row + row_stride_bytes, ...; -1 to leave a row out.
  void sort(const int32_t* classes, const char* first_row, int64_t row_stride_bytes,
            int64_t num_rows) {
    slices.clear();
    if (offsets_.empty()) {
      sort_by_comparison(classes, first_row, row_stride_bytes, num_rows);
    } else {
      sort_by_counting(classes, first_row, row_stride_bytes, num_rows);
    }
    const int64_t end = slices.empty() ? 0 : slices.back().end;
    for (int64_t i = end; i < end + kRowsAhead; ++i) rows[i] = i == 0 ? first_row : rows[i - 1];
  }

  int64_t num_bytes() const {
    return bytes_of(rows) + bytes_of(slices) + bytes_of(kept_) + bytes_of(offsets_);
  }

 private:
  void sort_by_comparison(const int32_t* classes, const char* first_row, int64_t row_stride_bytes,
                          int64_t num_rows) {
    kept_.clear();
    for (int64_t i = 0; i < num_rows; ++i) {
      if (classes[i] >= 0) kept_.push_back(i);
    }
    std::sort(kept_.begin(), kept_.end(), [classes](int64_t a, int64_t b) {
      return classes[a] != classes[b] ? classes[a] < classes[b] : a < b;
    });
    for (int64_t i = 0; i < static_cast<int64_t>(kept_.size()); ++i) {
      const int64_t k = classes[kept_[i]];
      if (slices.empty() || slices.back().class_index != k) slices.push_back({k, i, i});
      slices.back().end = i + 1;
      rows[i] = first_row + kept_[i] * row_stride_bytes;
    }
  }

  void sort_by_counting(const int32_t* classes, const char* first_row, int64_t row_stride_bytes,
                        int64_t num_rows) {
    std::fill(offsets_.begin(), offsets_.end(), 0);
    for (int64_t i = 0; i < num_rows; ++i) {
      if (classes[i] >= 0) ++offsets_[classes[i]];
    }
    int64_t begin = 0;
    for (int64_t k = 0; k < static_cast<int64_t>(offsets_.size()); ++k) {
      const int64_t count = offsets_[k];
      if (count > 0) slices.push_back({k, begin, begin + count});
      offsets_[k] = begin;
      begin += count;
    }
    for (int64_t i = 0; i < num_rows; ++i) {
      if (classes[i] >= 0) rows[offsets_[classes[i]]++] = first_row + i * row_stride_bytes;
    }
  }

  std::vector<int64_t> kept_;
  std::vector<int64_t> offsets_;
};

}  // namespace deeprep
