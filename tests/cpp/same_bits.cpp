#include "same_bits.h"

#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <utility>

#include "expect.h"
#include "shift_rows.h"
#include "squared_distances.h"

namespace deeprep::testing {
namespace {

// 64-bit FNV-1a.
class Hash {
 public:
  template <typename T>
  void add(const Block<T>& block) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(block.data());
    for (int64_t i = 0; i < block.bytes(); ++i) value_ = (value_ ^ bytes[i]) * 0x100000001b3u;
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

// In [-1, 1]. The standard fixes the generator's numbers, but not those of its distributions.
double draw(std::mt19937_64& random) {
  return static_cast<double>(static_cast<int64_t>(random())) * 0x1p-63;
}

enum class Data { kPlain, kFarFromZero, kOutliers, kTiny, kSomeAnyBits, kAnyBits };
constexpr int kNumData = 6;

template <typename Type>
typename Type::Stored draw_feature(Data data, std::mt19937_64& random) {
  typename Type::Stored any_bits;
  const uint64_t bits = random();
  std::memcpy(&any_bits, &bits, sizeof any_bits);
  const bool rare = random() % 64 == 0;
  const double value = draw(random);
  switch (data) {
    case Data::kPlain:
      return Type::encode(value);
    case Data::kFarFromZero:
      return Type::encode(1000.0 + value);
    case Data::kOutliers:
      return Type::encode(rare ? 3e4 * value : value);
    case Data::kTiny:
      return Type::encode(1e-25 * value);
    case Data::kSomeAnyBits:
      return rare && random() % 64 == 0 ? any_bits : Type::encode(value);
    case Data::kAnyBits:
      return any_bits;
  }
  return {};
}

struct Shape {
  int64_t num_rows;
  int64_t num_columns;
  int64_t num_classes;
};

// One batch, taken in as two updates.
template <typename Type>
void add_batch(const Shape& shape, int trial, Data data, Labelling labelling, Hash& hash) {
  const auto [num_rows, num_columns, num_classes] = shape;
  std::mt19937_64 random(trial);
  const int64_t column_stride = trial % 5 == 0 ? 2 : 1;
  const int64_t row_stride = num_columns * column_stride + trial % 3;
  const Block<typename Type::Stored> features(num_rows * row_stride, trial / 2 % 2);
  for (int64_t i = 0; i < features.size(); ++i) features[i] = draw_feature<Type>(data, random);
  const auto labels = make_labels<int64_t>(num_rows, num_classes, labelling, random);

  const State state(num_classes, num_columns);
  set_row_order(trial % 2 == 0 ? "class" : "input");
  const int64_t half = num_rows / 2;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, half}, {half, num_rows}}) {
    expect_ok(class_moments({features.data() + begin * row_stride, Type::type, end - begin,
                             num_columns, row_stride, column_stride},
                            {labels.data() + begin, LabelType::kInt64, kIgnore}, state.view(),
                            kThreadCounts[trial % 3]),
              "same bits, trial " + std::to_string(trial));
  }
  set_row_order("auto");
  hash.add(state.counts);
  hash.add(state.means);
  hash.add(state.sumsq);

  const Block<double> distances(num_classes);
  squared_distances(state.means.data(), state.means.data(), distances.data(), num_classes,
                    num_columns, 1);
  hash.add(distances);

  // Which NaN leaves shift_rows depends on the processor.
  if (data == Data::kAnyBits || data == Data::kSomeAnyBits) return;
  using Accumulator = std::conditional_t<sizeof(typename Type::Stored) == 8, double, float>;
  const Block<Accumulator> pivots(num_classes * num_columns);
  for (int64_t i = 0; i < pivots.size(); ++i) {
    pivots[i] = static_cast<Accumulator>(state.means[i]);
  }
  const Block<Accumulator> shifted(num_rows * num_columns);
  shift_rows({features.data(), Type::type, num_rows, num_columns, row_stride, column_stride},
             {labels.data(), LabelType::kInt64, kIgnore}, {pivots.data(), nullptr, nullptr},
             shifted.data(), 1);
  hash.add(shifted);

  // With the pivots for offsets too, which is as good as anything.
  const Block<typename Type::Stored> moved(num_rows * num_columns);
  shift_rows({features.data(), Type::type, num_rows, num_columns, row_stride, column_stride},
             {labels.data(), LabelType::kInt64, kIgnore},
             {pivots.data(), state.sumsq.data(), pivots.data()}, moved.data(), 1);
  hash.add(moved);
}

template <typename Type>
void add_type(Hash& hash) {
  const int64_t classes[] = {1, 3, 10, 150, 2000};
  const int64_t columns[] = {12, 70, 300, 1200};
  std::mt19937_64 random(29);
  int trial = 0;
  for (; trial < 120; ++trial) {
    const Shape shape = {1 + static_cast<int64_t>(random() % 400),
                         1 + static_cast<int64_t>(random() % columns[trial % 4]),
                         classes[random() % 5]};
    const auto labelling = static_cast<Labelling>(random() % 4);
    add_batch<Type>(shape, trial, static_cast<Data>(trial % kNumData), labelling, hash);
  }
  // Several groups; several segments a class; enough bytes for several threads.
  const Shape large[] = {{5000, 64, 2}, {5000, 20, 30}, {40000, 31, 3}};
  for (const Shape& shape : large) {
    add_batch<Type>(shape, trial++, Data::kPlain, Labelling::kSkewed, hash);
    add_batch<Type>(shape, trial++, Data::kOutliers, Labelling::kShuffled, hash);
  }
}

}  // namespace

uint64_t hash_of_updates() {
  Hash hash;
  add_type<Float32>(hash);
  add_type<Float64>(hash);
  add_type<Float16>(hash);
  add_type<BFloat16>(hash);
  return hash.value();
}

}  // namespace deeprep::testing
