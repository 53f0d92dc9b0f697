// shift_rows on a CUDA device: one kernel.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/simt.h"
#include "plan.h"
#include "shift_rows.h"

namespace deeprep::cuda {

// As on the CPU, see shift_rows.h; without offsets, a scale that an accumulator holds. Parallel
// axis: rows, a block each, and columns.
template <FeatureType kType, typename Label, bool kHasOffsets>
__global__ void shift_rows(DeviceFeatures features, const Label* labels, int64_t ignore_index,
                           const typename Element<kType>::Accumulator* pivots, const double* scales,
                           const typename Element<kType>::Accumulator* offsets, void* out_data) {
  using Bits = typename Element<kType>::Bits;
  using Accumulator = typename Element<kType>::Accumulator;
  using Rounded = decltype(Element<kType>::round(Accumulator()));
  using Out = std::conditional_t<kHasOffsets, Rounded, Accumulator>;
  Out* const out = static_cast<Out*>(out_data);
  Accumulator factor = 1;
  if constexpr (!kHasOffsets) {
    if (scales != nullptr) factor = static_cast<Accumulator>(*scales);
  }
  const int64_t num_columns = features.num_columns;
  for (int64_t i = blockIdx.x; i < features.num_rows; i += gridDim.x) {
    const int64_t label = labels[i];
    const bool is_kept = label != ignore_index;
    if constexpr (kHasOffsets) {
      if (is_kept) factor = static_cast<Accumulator>(scales[label]);
    }
    for (int64_t j = threadIdx.x; j < num_columns; j += blockDim.x) {
      const char* address =
          features.data + i * features.row_stride_bytes + j * features.column_stride_bytes;
      Accumulator value = 0;
      if (is_kept) {
        const int64_t entry = label * num_columns + j;
        value = (Element<kType>::widen(*reinterpret_cast<const Bits*>(address)) - pivots[entry]) *
                factor;
        if constexpr (kHasOffsets) value += offsets[entry];
      }
      if constexpr (kHasOffsets) {
        out[i * num_columns + j] = Element<kType>::round(value);
      } else {
        out[i * num_columns + j] = value;
      }
    }
  }
}

template <typename Device>
void launch_shift_rows(Device& device, const Features& features, const Labels& labels,
                       const ClassShifts& shifts, void* out) {
  if (features.num_rows == 0) return;
  const int threads = static_cast<int>(
      std::min<int64_t>(device.threads_per_block(), ceil_div(features.num_columns, 32) * 32));
  const int64_t blocks = std::min(features.num_rows, device.max_blocks(threads));
  visit_type(features.type, [&](auto type) {
    constexpr FeatureType kType = decltype(type)::value;
    using Accumulator = typename Element<kType>::Accumulator;
    visit_labels(labels.data, labels.type, [&](const auto* values) {
      using Label = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
      const auto kernel = shifts.offsets != nullptr ? &shift_rows<kType, Label, true>
                                                    : &shift_rows<kType, Label, false>;
      device.launch(kernel, blocks, threads, device_features(features), values, labels.ignore_index,
                    static_cast<const Accumulator*>(shifts.pivots), shifts.scales,
                    static_cast<const Accumulator*>(shifts.offsets), out);
    });
  });
}

}  // namespace deeprep::cuda
