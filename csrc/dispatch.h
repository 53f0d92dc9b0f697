// Element types of the features and labels, and the only switches over them.
#pragma once

#include <cstdint>

namespace deeprep {

enum class FeatureType { kFloat32, kFloat64, kFloat16, kBFloat16 };
enum class LabelType { kInt32, kInt64 };

constexpr int kNumFeatureTypes = 4;

constexpr int64_t size_of(FeatureType type) {
  switch (type) {
    case FeatureType::kFloat64:
      return 8;
    case FeatureType::kFloat32:
      return 4;
    case FeatureType::kFloat16:
    case FeatureType::kBFloat16:
      return 2;
  }
  return 0;
}

// Of what features are summed in, and shifted rows are made of: float64 for float64, else float32.
constexpr int64_t accumulator_size_of(FeatureType type) {
  return type == FeatureType::kFloat64 ? 8 : 4;
}

// Calls visit(const int32_t*) or visit(const int64_t*).
template <typename Visitor>
auto visit_labels(const void* labels, LabelType type, Visitor&& visit) {
  return type == LabelType::kInt32 ? visit(static_cast<const int32_t*>(labels))
                                   : visit(static_cast<const int64_t*>(labels));
}

}  // namespace deeprep
