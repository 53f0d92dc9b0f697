// How the rows of a batch are cut up: what defines the order of operations on every device.
//
//   1. Rows are cut into at most kMaxGroups groups of consecutive rows, groups into blocks.
//   2. A class's rows in a block, in input order, are a slice; it is cut into chunks of kChunkRows
//      (moments.h).
//   3. A class's chunks in a group form segments, each closed by the chunk with which it holds
//      kSegmentRows rows or more. Chunks merge into their segment one after the other.
//   4. Segments merge into the running state one after the other.
//
// All of it strip by strip of columns (moments.h). The plan is a function of N, d, K and the
// element type, so results depend on the data and the state alone: threads, vector widths and
// launch configurations choose who does the work, never what is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "dispatch.h"
#include "moments.h"

namespace deeprep {

constexpr int64_t kMaxGroups = 64;
constexpr int64_t kGroupRowsPerClass = 256;  // a group must outweigh its moments, K x d
constexpr int64_t kBlockRowsPerClass = 32;  // a block must outweigh closing the chunks of K classes
constexpr int64_t kBlockBytes = 128 * 1024;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  int64_t num_groups;
  int64_t group_rows;  // a multiple of block_rows
  int64_t block_rows;
  int64_t num_strips;
};

inline Plan make_plan(int64_t num_rows, int64_t num_columns, FeatureType type,
                      int64_t num_classes) {
  const int64_t row_bytes = num_columns * size_of(type);
  const int64_t block = std::max(kBlockRowsPerClass * num_classes, kBlockBytes / row_bytes);
  const int64_t least = std::max(kGroupRowsPerClass * num_classes, block);
  const int64_t strips = ceil_div(num_columns, kStripColumns);
  if (num_rows < 2 * least) return {1, num_rows, num_rows, strips};
  const int64_t group = ceil_div(std::max(least, ceil_div(num_rows, kMaxGroups)), block) * block;
  return {ceil_div(num_rows, group), group, block, strips};
}

// How many of the next num_rows rows of a class, chunks of one block, belong to its open segment,
// which holds rows_so_far, fewer than kSegmentRows (0: a new one). The segment is closed if it then
// holds kSegmentRows. A GPU counts in 32 bits.
template <typename Count>
constexpr Count rows_for_segment(std::common_type_t<Count> rows_so_far, Count num_rows) {
  constexpr Count kChunk = kChunkRows;
  const Count chunks = (Count{kSegmentRows} - rows_so_far + (kChunk - 1)) / kChunk;
  return chunks * kChunk < num_rows ? chunks * kChunk : num_rows;
}

}  // namespace deeprep
