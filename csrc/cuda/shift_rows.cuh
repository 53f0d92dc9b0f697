// shift_rows on a CUDA device: one kernel.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../class_moments.h"
#include "cuda/elements.cuh"
#include "cuda/simt.h"
#include "plan.h"

namespace deeprep::cuda {

// out[i] = (x_i - pivots[labels[i]]) * *scale, or 0 where labels[i] == ignore_index; scale: a power
// of two that an accumulator holds, null for 1. Parallel axis: rows, a block each, and columns.
template <FeatureType kType, typename Label>
__global__ void shift_rows(DeviceFeatures features, const Label* labels, int64_t ignore_index,
                           const typename Element<kType>::Accumulator* pivots, const double* scale,
                           typename Element<kType>::Accumulator* out) {
  using Bits = typename Element<kType>::Bits;
  using Accumulator = typename Element<kType>::Accumulator;
  const Accumulator factor = scale == nullptr ? 1 : static_cast<Accumulator>(*scale);
  const int64_t num_columns = features.num_columns;
  for (int64_t i = blockIdx.x; i < features.num_rows; i += gridDim.x) {
    const int64_t label = labels[i];
    for (int64_t j = threadIdx.x; j < num_columns; j += blockDim.x) {
      const char* address =
          features.data + i * features.row_stride_bytes + j * features.column_stride_bytes;
      out[i * num_columns + j] =
          label != ignore_index ? (Element<kType>::widen(*reinterpret_cast<const Bits*>(address)) -
                                   pivots[label * num_columns + j]) *
                                      factor
                                : 0;
    }
  }
}

// As on the CPU, see shift_rows.h.
template <typename Device>
void launch_shift_rows(Device& device, const Features& features, const Labels& labels,
                       const void* pivots, const double* scale, void* out) {
  if (features.num_rows == 0) return;
  const int threads = static_cast<int>(
      std::min<int64_t>(device.threads_per_block(), ceil_div(features.num_columns, 32) * 32));
  const int64_t blocks = std::min(features.num_rows, device.max_blocks(threads));
  visit_type(features.type, [&](auto type) {
    constexpr FeatureType kType = decltype(type)::value;
    using Accumulator = typename Element<kType>::Accumulator;
    visit_labels(labels.data, labels.type, [&](const auto* values) {
      using Label = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
      device.launch(shift_rows<kType, Label>, blocks, threads, device_features(features), values,
                    labels.ignore_index, static_cast<const Accumulator*>(pivots), scale,
                    static_cast<Accumulator*>(out));
    });
  });
}

}  // namespace deeprep::cuda
