// Element types on the device: loading a few neighbouring columns of a row, exact widening, and
// rounding an accumulator to what an element is stored as.
#pragma once

#include <cstring>
#include <type_traits>

#include "../class_moments.h"
#include "cuda/simt.h"
#include "narrow.h"

namespace deeprep::cuda {

template <FeatureType kType>
struct Element;

// The columns that a thread owns, for every type: so a strip takes as many warps of a two-byte type
// as of float32, and its columns are summed by the same shuffles.
constexpr int kVector = 4;

template <>
struct Element<FeatureType::kFloat32> {
  using Bits = uint32_t;
  using Accumulator = float;
  __device__ static float widen(Bits bits) { return simt::bits_to_float(bits); }
  __device__ static float round(float value) { return value; }
};
template <>
struct Element<FeatureType::kFloat64> {
  using Bits = uint64_t;
  using Accumulator = double;
  __device__ static double widen(Bits bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
  __device__ static double round(double value) { return value; }
};
template <>
struct Element<FeatureType::kFloat16> {
  using Bits = uint16_t;
  using Accumulator = float;
  __device__ static float widen(Bits bits) { return simt::half_to_float(bits); }
  __device__ static Bits round(float value) { return round_to_half(value); }
};
template <>
struct Element<FeatureType::kBFloat16> {
  using Bits = uint16_t;
  using Accumulator = float;
  __device__ static float widen(Bits bits) {
    return simt::bits_to_float(static_cast<uint32_t>(bits) << 16);
  }
  __device__ static Bits round(float value) { return round_to_bfloat16(value); }
};

// A thread's columns of one row, as loaded.
template <FeatureType kType>
struct Columns {
  using Type = Element<kType>;
  using Bits = typename Type::Bits;
  static constexpr int kWords = kVector * static_cast<int>(sizeof(Bits)) / 4;
  uint32_t words[kWords];

  // What load_vector() loads at once, and how its address must be aligned.
  static constexpr int kLoadBytes = kWords < 4 ? 4 * kWords : 16;

  // All kVector columns of a contiguous row.
  __device__ __forceinline__ void load_vector(const char* row) {
    if constexpr (kLoadBytes == 8) {
      const uint2 two = simt::load64(row);
      words[0] = two.x;
      words[1] = two.y;
    } else {
#pragma unroll
      for (int w = 0; w < kWords; w += 4) {
        const uint4 four = simt::load128(row + 4 * w);
        words[w] = four.x;
        words[w + 1] = four.y;
        words[w + 2] = four.z;
        words[w + 3] = four.w;
      }
    }
  }

  // The first num_columns columns, column_stride_bytes apart; zeros for the others.
  __device__ __forceinline__ void load_each(const char* row, int64_t column_stride_bytes,
                                            int num_columns) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = 0;
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      if (e >= num_columns) continue;
      const Bits bits = *reinterpret_cast<const Bits*>(row + e * column_stride_bytes);
      if constexpr (sizeof(Bits) == 2) {
        words[e / 2] |= static_cast<uint32_t>(bits) << (16 * (e % 2));
      } else if constexpr (sizeof(Bits) == 4) {
        words[e] = bits;
      } else {
        words[2 * e] = static_cast<uint32_t>(bits);
        words[2 * e + 1] = static_cast<uint32_t>(bits >> 32);
      }
    }
  }

  __device__ __forceinline__ typename Type::Accumulator value(int e) const {
    if constexpr (sizeof(Bits) == 2) {
      return Type::widen(static_cast<Bits>(words[e / 2] >> (16 * (e % 2)) & 0xffffu));
    } else if constexpr (sizeof(Bits) == 4) {
      return Type::widen(words[e]);
    } else {
      return Type::widen(static_cast<uint64_t>(words[2 * e + 1]) << 32 | words[2 * e]);
    }
  }
};

// Features as the kernels address them.
struct DeviceFeatures {
  const char* data;
  int64_t num_rows;
  int64_t num_columns;
  int64_t row_stride_bytes;
  int64_t column_stride_bytes;
};

inline DeviceFeatures device_features(const Features& features) {
  DeviceFeatures device = {};
  device.data = static_cast<const char*>(features.data);
  device.num_rows = features.num_rows;
  device.num_columns = features.num_columns;
  device.row_stride_bytes = features.row_stride * size_of(features.type);
  device.column_stride_bytes = features.column_stride * size_of(features.type);
  return device;
}

// Calls visit with the feature type as a constant.
template <typename Visitor>
void visit_type(FeatureType type, Visitor&& visit) {
  switch (type) {
    case FeatureType::kFloat32:
      return visit(std::integral_constant<FeatureType, FeatureType::kFloat32>());
    case FeatureType::kFloat64:
      return visit(std::integral_constant<FeatureType, FeatureType::kFloat64>());
    case FeatureType::kFloat16:
      return visit(std::integral_constant<FeatureType, FeatureType::kFloat16>());
    case FeatureType::kBFloat16:
      return visit(std::integral_constant<FeatureType, FeatureType::kBFloat16>());
  }
}

}  // namespace deeprep::cuda
