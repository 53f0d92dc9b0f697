// The two small kernels beside the fused pass: rows shifted by the pivots of their classes, for the
// pooled scatter, and squared distances of the class means, for traces and norms.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/strips.cuh"
#include "cuda/tables.cuh"

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

// out[k] = sum_j (means[k, j] - center[j])^2. Parallel axis: classes, a block each, whose warps
// take strips in turn; one thread adds the strips in order.
constexpr int kDistanceWarps = 8;

static __global__ void sum_squared_distances(const double* means, const double* center, double* out,
                                             int64_t num_classes, int64_t num_columns) {
  constexpr int kVector = 4;
  using Strips = simt::Array<double, kDistanceWarps>;
  SIMT_SHARED(Strips, strips);
  const Team team = Team::of_this_thread(kWarpThreads);
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  for (int64_t k = blockIdx.x; k < num_classes; k += gridDim.x) {
    double total = 0;
    for (int64_t base = 0; base < num_columns; base += kDistanceWarps * kStripColumns) {
      const int64_t column = base + warp * kStripColumns + team.rank * kVector;
      double squares[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const int64_t j = column + e;
        double delta = 0;
        if (j < num_columns) {
          delta = means[k * num_columns + j] - (center == nullptr ? 0 : center[j]);
        }
        squares[e] = delta * delta;
      }
      const double sum = sum_strip(team, squares);
      if (team.rank == 0) strips[warp] = sum;
      __syncthreads();
      // Strips beyond the last are +0 and change nothing.
      if (threadIdx.x == 0) {
        for (int w = 0; w < kDistanceWarps; ++w) total += strips[w];
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) out[k] = total;
  }
}

}  // namespace deeprep::cuda
