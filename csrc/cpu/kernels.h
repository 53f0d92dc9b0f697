// The kernels of one instruction set, as a table of functions. Private to csrc/cpu.
#pragma once

#include <cstdint>
#include <type_traits>

#include "dispatch.h"
#include "moments.h"
#include "narrow.h"

namespace deeprep {

// A column tile is what one pass over a chunk holds in the first-level cache.
constexpr int64_t kTileColumns = 1024;
constexpr int64_t kTileStrips = kTileColumns / kStripColumns;

// How many rows ahead of use the kernels prefetch: arrays of row pointers go on for so many more.
constexpr int64_t kRowsAhead = 16;

// Rows of a slice (plan.h), or of the part of it that one segment takes, on one column tile.
struct SliceOnTile {
  const char* const* rows;  // pointers to the rows; kRowsAhead valid ones follow the last
  int64_t num_rows;         // how many
  int64_t column_stride;    // in elements
  int64_t first_column;     // of the tile
  int64_t num_columns;      // of the tile, <= kTileColumns
};

// Rows of a block in input order, unit column stride.
struct RowsInOrder {
  const char* first_row;
  int64_t row_stride_bytes;
  int64_t num_columns;     // <= kTileColumns
  const int32_t* classes;  // -1 where ignored
};

// A chunk that is given its rows one by one. They wait until they are a group.
struct OpenChunk {
  const char* rows[kChunkRows];
  int64_t num_rows;
  void* sums;  // kOpenChunkSums arrays of open_chunk_columns() accumulators
};
constexpr int64_t kOpenChunkSums = 3;
// A line more than the columns take, so that arrays never lie a power of two apart.
static constexpr int64_t open_chunk_columns(int64_t num_columns) {
  return num_columns / 16 * 16 + 32;
}
static constexpr int64_t open_chunk_bytes(int64_t num_columns, FeatureType type) {
  return kOpenChunkSums * open_chunk_columns(num_columns) * accumulator_size_of(type);
}

// What moves a row, as shift_rows.h has it for its class.
struct RowShift {
  const void* pivot;    // accumulators
  const double* scale;  // null: 1
  const void* offset;   // accumulators; null: none
};

struct Kernels {
  // Merges the slice into (n, mean[num_columns]) chunk by chunk and adds to growth, a number for
  // each strip of the tile, what the sums of squares grow by. staging: kChunkRows x num_columns
  // elements, read only where column_stride != 1.
  using MergeSlice = void (*)(const SliceOnTile& slice, int64_t n, double* mean, double* growth,
                              void* staging);
  MergeSlice merge_slice[kNumFeatureTypes];  // indexed by FeatureType

  // Gives rows [begin, end) to the chunks of their classes, until one of these is full; returns
  // the row behind the one that filled it, or end.
  using GiveRows = int64_t (*)(const RowsInOrder& rows, int64_t begin, int64_t end,
                               OpenChunk* chunks);
  GiveRows give_rows[kNumFeatureTypes];

  // Merges a chunk that has rows as merge_slice does, and empties it.
  using CloseChunk = void (*)(OpenChunk& chunk, int64_t num_columns, int64_t n, double* mean,
                              double* growth);
  CloseChunk close_chunk[kNumFeatureTypes];

  // Merges (m, other_mean) into (n, mean), both num_columns <= kTileColumns wide, and adds to
  // growth, a number for each strip, what the sums of squares grow by the distance of the two
  // means.
  void (*merge_means)(const double* other_mean, int64_t m, int64_t n, double* mean,
                      int64_t num_columns, double* growth);

  // sum_j (point[j] - center[j])^2 over num_columns of any number; center may be null, for zero.
  double (*squared_distance)(const double* point, const double* center, int64_t num_columns);

  // out[j] = (row[j] - pivot[j]) * scale + offset[j], see shift_rows.h; row: features of any column
  // stride.
  using ShiftRow = void (*)(const void* row, int64_t column_stride, const RowShift& shift,
                            void* out, int64_t num_columns);
  ShiftRow shift_row[kNumFeatureTypes];

  // Classes of num_rows labels, -1 for ignore_index; false where there is a bad label.
  // Overloaded through visit_labels.
  struct ReadClasses {
    bool (*of_int32)(const int32_t* labels, int64_t num_rows, int64_t num_classes,
                     int64_t ignore_index, int32_t* classes);
    bool (*of_int64)(const int64_t* labels, int64_t num_rows, int64_t num_classes,
                     int64_t ignore_index, int32_t* classes);
    bool operator()(const int32_t* labels, int64_t num_rows, int64_t num_classes,
                    int64_t ignore_index, int32_t* classes) const {
      return of_int32(labels, num_rows, num_classes, ignore_index, classes);
    }
    bool operator()(const int64_t* labels, int64_t num_rows, int64_t num_classes,
                    int64_t ignore_index, int32_t* classes) const {
      return of_int64(labels, num_rows, num_classes, ignore_index, classes);
    }
  } read_classes;
};

namespace generic {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace neon {
extern const Kernels kKernels;
}

}  // namespace deeprep
