// shift_rows on the CPU. Parallel axis: rows.
#include "shift_rows.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "plan.h"

namespace deeprep {

void shift_rows(const Features& features, const Labels& labels, const ClassShifts& shifts,
                void* out, int num_threads) {
  constexpr int64_t kRowsPerItem = 64;
  const bool has_offsets = shifts.offsets != nullptr;
  const int64_t class_bytes = features.num_columns * accumulator_size_of(features.type);
  const int64_t out_row_bytes =
      has_offsets ? features.num_columns * size_of(features.type) : class_bytes;
  const auto shift = active_kernels().shift_row[static_cast<int>(features.type)];
  const int64_t items = ceil_div(features.num_rows, kRowsPerItem);
  visit_labels(labels.data, labels.type, [&](const auto* values) {
    parallel_for(items, items < 4 ? 1 : num_threads, [&](int64_t item, int) {
      const int64_t end = std::min((item + 1) * kRowsPerItem, features.num_rows);
      for (int64_t i = item * kRowsPerItem; i < end; ++i) {
        const char* row = static_cast<const char*>(features.data) +
                          i * features.row_stride * size_of(features.type);
        char* shifted = static_cast<char*>(out) + i * out_row_bytes;
        const int64_t label = values[i];
        if (label == labels.ignore_index) {
          std::fill(shifted, shifted + out_row_bytes, char{0});
          continue;
        }
        const int64_t offset = label * class_bytes;
        shift(row, features.column_stride,
              {static_cast<const char*>(shifts.pivots) + offset,
               has_offsets ? shifts.scales + label : shifts.scales,
               has_offsets ? static_cast<const char*>(shifts.offsets) + offset : nullptr},
              shifted, features.num_columns);
      }
    });
  });
}

}  // namespace deeprep
