// squared_distances on a CUDA device: one kernel.
#pragma once

#include <algorithm>

#include "cuda/simt.h"
#include "cuda/strips.cuh"

namespace deeprep::cuda {

// out[k] = sum_j (points[k, j] - center[j])^2. Parallel axis: points, a block each, whose warps
// take strips in turn; one thread adds the strips in order.
constexpr int kDistanceWarps = 8;

static __global__ void sum_squared_distances(const double* points, const double* center,
                                             double* out, int64_t num_points, int64_t num_columns) {
  using Strips = simt::Array<double, kDistanceWarps>;
  SIMT_SHARED(Strips, strips);
  const Team team = Team::of_this_thread(kWarpThreads);
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  for (int64_t k = blockIdx.x; k < num_points; k += gridDim.x) {
    double total = 0;
    for (int64_t base = 0; base < num_columns; base += kDistanceWarps * kStripColumns) {
      const int64_t column = base + warp * kStripColumns + team.rank * kVector;
      double squares[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const int64_t j = column + e;
        double delta = 0;
        if (j < num_columns) {
          delta = points[k * num_columns + j] - (center == nullptr ? 0 : center[j]);
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
    if (threadIdx.x == 0) out[k] = unify_nan(total);
  }
}

// As on the CPU, see squared_distances.h.
template <typename Device>
void launch_squared_distances(Device& device, const double* points, const double* center,
                              double* out, int64_t num_points, int64_t num_columns) {
  constexpr int kThreads = kDistanceWarps * kWarpThreads;
  device.launch(sum_squared_distances, std::min(num_points, device.max_blocks(kThreads)), kThreads,
                points, center, out, num_points, num_columns);
}

}  // namespace deeprep::cuda
