// What the tests of the core share: heap blocks of exact size, the feature types and the definition
// of class moments in two passes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

#include "class_moments.h"

namespace deeprep::testing {

constexpr int64_t kIgnore = -100;

// A heap block of exactly `size` elements. `shift` = 1 hands out an address one element further,
// as the rows of a sliced array have.
template <typename T>
class Block {
 public:
  explicit Block(int64_t size, int64_t shift = 0)
      : storage_(new T[size + shift]()), size_(size), shift_(shift) {}
  T* data() const { return storage_.get() + shift_; }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }
  T& operator[](int64_t i) const { return data()[i]; }

 private:
  std::unique_ptr<T[]> storage_;
  int64_t size_;
  int64_t shift_;
};

// ------------------------------------------------------------------------ feature types

// The stored form of each feature type, how to draw one and what number it stands for.
struct Float32 {
  using Stored = float;
  static constexpr FeatureType type = FeatureType::kFloat32;
  static Stored encode(double value) { return static_cast<float>(value); }
  static double decode(Stored value) { return value; }
};

struct Float64 {
  using Stored = double;
  static constexpr FeatureType type = FeatureType::kFloat64;
  static Stored encode(double value) { return value; }
  static double decode(Stored value) { return value; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static constexpr FeatureType type = FeatureType::kBFloat16;
  static Stored encode(double value) {
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof(bits));
    return static_cast<uint16_t>(bits >> 16);  // truncated: any bfloat16 near `value` will do
  }
  static double decode(Stored value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float single;
    std::memcpy(&single, &bits, sizeof(single));
    return single;
  }
};

struct Float16 {
  using Stored = uint16_t;
  static constexpr FeatureType type = FeatureType::kFloat16;
  static Stored encode(double value) {  // truncated; |value| well inside the range of normals
    if (std::fabs(value) < 6.2e-5) return 0;
    int exponent;
    const double fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
    const int mantissa = static_cast<int>((2.0 * fraction - 1.0) * 1024.0);
    const int bits = (value < 0 ? 0x8000 : 0) | ((exponent + 14) << 10) | mantissa;
    return static_cast<uint16_t>(bits);
  }
  static double decode(Stored value) {
    const int exponent = (value >> 10) & 31;
    const int mantissa = value & 1023;
    const double size =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return value & 0x8000 ? -size : size;
  }
};

// ------------------------------------------------------------------------ state and reference

struct State {
  State(int64_t num_classes, int64_t num_columns)
      : counts(num_classes), means(num_classes * num_columns), sumsq(num_classes) {}
  ClassMoments view() const { return {counts.data(), means.data(), sumsq.data(), counts.size()}; }
  bool same_bits(const State& other) const {
    return std::memcmp(counts.data(), other.counts.data(), counts.bytes()) == 0 &&
           std::memcmp(means.data(), other.means.data(), means.bytes()) == 0 &&
           std::memcmp(sumsq.data(), other.sumsq.data(), sumsq.bytes()) == 0;
  }

  Block<int64_t> counts;
  Block<double> means;
  Block<double> sumsq;
};

// What class_moments must come to: value(i, j) is the feature of row i, column j.
inline State two_passes(int64_t num_rows, int64_t num_columns, int64_t num_classes,
                        const std::function<double(int64_t, int64_t)>& value,
                        const std::function<int64_t(int64_t)>& label) {
  State state(num_classes, num_columns);
  for (int64_t i = 0; i < num_rows; ++i) {
    if (label(i) == kIgnore) continue;
    ++state.counts[label(i)];
    for (int64_t j = 0; j < num_columns; ++j) {
      state.means[label(i) * num_columns + j] += value(i, j);
    }
  }
  for (int64_t k = 0; k < num_classes; ++k) {
    for (int64_t j = 0; j < num_columns && state.counts[k] > 0; ++j) {
      state.means[k * num_columns + j] /= static_cast<double>(state.counts[k]);
    }
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    if (label(i) == kIgnore) continue;
    for (int64_t j = 0; j < num_columns; ++j) {
      const double deviation = value(i, j) - state.means[label(i) * num_columns + j];
      state.sumsq[label(i)] += deviation * deviation;
    }
  }
  return state;
}

}  // namespace deeprep::testing
