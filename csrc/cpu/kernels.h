// The kernels of one instruction set, as a table of functions. Private to csrc/cpu.
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "moments.h"

namespace deeprep {

// Rows of one class, in input order, restricted to one column tile.
struct RunOfRows {
  const void* data;        // first element of the feature matrix
  const int64_t* rows;     // indices of the rows
  int64_t num_rows;        // how many
  int64_t num_rows_after;  // indices that follow in `rows`: what will be read next, for prefetching
  int64_t row_stride;      // in elements
  int64_t column_stride;   // in elements
  int64_t first_column;    // of the tile
  int64_t num_columns;     // of the tile, <= kTileColumns
};

struct Kernels {
  // Merges the run into (n, mean[num_columns]) chunk by chunk and returns the growth of the sum of
  // squares. staging: kChunkRows * kTileColumns elements, read only where column_stride != 1.
  using MergeRun = double (*)(const RunOfRows& run, int64_t n, double* mean, void* staging);
  MergeRun merge_run[kNumFeatureTypes];  // indexed by FeatureType

  // Merges (m, other_mean) into (n, mean), both num_columns <= kTileColumns wide; returns the
  // growth of the sum of squares due to the distance between the two means.
  double (*merge_means)(const double* other_mean, int64_t m, int64_t n, double* mean,
                        int64_t num_columns);
};

namespace portable {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

}  // namespace deeprep
