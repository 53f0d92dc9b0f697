// Eight rows of a chunk, loaded at once and summed one after the other: what both fused passes,
// sum_segments.cuh and sum_chunks.cuh, are made of.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/strips.cuh"

namespace deeprep::cuda {

// Column of a strip's thread, counted from the first of all; how many of `width` from there on
// exist.
__device__ __forceinline__ int64_t column_of(int64_t strip, int offset) {
  return strip * kStripColumns + offset;
}
__device__ __forceinline__ int count_columns(const DeviceFeatures& features, int64_t column,
                                             int width = kVector) {
  const int64_t left = features.num_columns - column;
  return left < 0 ? 0 : left < width ? static_cast<int>(left) : width;
}

// Where a thread finds its columns of a row. Aligned: rows are contiguous, take less than 4 GiB and
// can be read by load_vector(). Threads beyond the last column then read the last ones instead, and
// whoever closes a chunk leaves their sums out: so no load waits for a condition.
template <bool kAligned>
struct ThreadColumns {
  const DeviceFeatures& features;
  const char* first;  // of row 0
  int count;          // how many exist

  __device__ ThreadColumns(const DeviceFeatures& of, int64_t column, int width = kVector)
      : features(of), count(count_columns(of, column, width)) {
    if (kAligned && count == 0) column = of.num_columns - kVector;
    first = of.data + column * of.column_stride_bytes;
  }

  __device__ __forceinline__ const char* row(uint32_t number) const {
    return kAligned ? first + uint64_t{number} * static_cast<uint32_t>(features.row_stride_bytes)
                    : first + number * features.row_stride_bytes;
  }
};

// The numbers of eight rows of a chunk. Where the chunk ends before, its first row takes the place
// of those that it lacks: its difference from itself adds +0, which changes no bit.
struct RowNumbers {
  uint32_t number[kGroupRows];

  // rows: in class order, the chunk's from `begin` on; first: of the eight.
  __device__ __forceinline__ void load(const uint32_t* rows, int64_t begin, int first,
                                       int num_rows) {
    const uint32_t* from = rows + begin + first;
    if (first + kGroupRows <= num_rows) {
#pragma unroll
      for (int r = 0; r < kGroupRows; ++r) number[r] = from[r];
    } else {
#pragma unroll
      for (int r = 0; r < kGroupRows; ++r) number[r] = from[first + r < num_rows ? r : -first];
    }
  }
};

template <FeatureType kType>
struct RowGroup {
  using Accumulator = typename Element<kType>::Accumulator;
  Columns<kType> rows[kGroupRows];

  template <bool kAligned>
  __device__ __forceinline__ void load(const ThreadColumns<kAligned>& columns,
                                       const RowNumbers& numbers) {
#pragma unroll
    for (int r = 0; r < kGroupRows; ++r) {
      const char* row = columns.row(numbers.number[r]);
      if constexpr (kAligned) {
        rows[r].load_vector(row);
      } else {
        rows[r].load_each(row, columns.features.column_stride_bytes, columns.count);
      }
    }
  }

  // Sums of a column's differences from the pivot, and of their squares.
  __device__ __forceinline__ void sum(int e, Accumulator pivot, Accumulator& t,
                                      Accumulator& q) const {
    // As if from zero: 0 + d and fma(d, d, 0) are d and d * d, but for the sign of a zero, and that
    // ends in the sum of the groups, which begins with +0.
    t = rows[0].value(e) - pivot;
    q = t * t;
#pragma unroll
    for (int r = 1; r < kGroupRows; ++r) {
      const Accumulator d = rows[r].value(e) - pivot;
      t += d;
      q = simt::fma(d, d, q);
    }
  }
};

// One column of a chunk summed again in double, plainly and in row order: rare.
template <FeatureType kType, bool kAligned>
__device__ __forceinline__ void sum_column_in_double(const ThreadColumns<kAligned>& columns,
                                                     const uint32_t* rows, int64_t begin,
                                                     int num_rows, int e, double& t, double& q) {
  using Type = Element<kType>;
  const auto value = [&](int64_t position) {
    const char* address = columns.row(rows[position]) + e * columns.features.column_stride_bytes;
    return static_cast<double>(Type::widen(*reinterpret_cast<const typename Type::Bits*>(address)));
  };
  const double pivot = value(begin);
  t = 0;
  q = 0;
#pragma unroll 1
  for (int i = 0; i < num_rows; ++i) {
    const double d = value(begin + i) - pivot;
    t += d;
    q += d * d;
  }
}

}  // namespace deeprep::cuda
