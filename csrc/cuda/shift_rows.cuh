// Rows shifted by the pivots of their classes, for the pooled scatter.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/simt.h"

namespace deeprep::cuda {

// out[i] = x_i - pivots[labels[i]], or 0 where labels[i] == ignore_index. Parallel axis: rows, a
// block each, and columns.
template <FeatureType kType, typename Label>
__global__ void subtract_pivots(const char* features, int64_t num_rows, int64_t num_columns,
                                int64_t row_stride, int64_t column_stride, const Label* labels,
                                int64_t ignore_index,
                                const typename Element<kType>::Accumulator* pivots,
                                typename Element<kType>::Accumulator* out) {
  using Bits = typename Element<kType>::Bits;
  for (int64_t i = blockIdx.x; i < num_rows; i += gridDim.x) {
    const int64_t label = labels[i];
    for (int64_t j = threadIdx.x; j < num_columns; j += blockDim.x) {
      const char* address = features + i * row_stride + j * column_stride;
      out[i * num_columns + j] =
          label != ignore_index ? Element<kType>::widen(*reinterpret_cast<const Bits*>(address)) -
                                      pivots[label * num_columns + j]
                                : 0;
    }
  }
}

}  // namespace deeprep::cuda
