// class_moments against a two-pass double computation, for the sanitizers: `make sanitize`.
//
// Links the core alone: no Python, no test framework. Every array is a heap block of exactly the
// size that the interface allows the core to touch, so that AddressSanitizer sees one element too
// many; several threads and concurrent callers are there for ThreadSanitizer, odd addresses and
// far strides for UndefinedBehaviorSanitizer. Accuracy in depth is tested from Python.
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <utility>

#include "expect.h"
#include "fused_multiply_add.h"
#include "same_bits.h"
#include "special_cases.h"

namespace {

using namespace deeprep;
using namespace deeprep::testing;

struct Layout {
  int64_t row_stride = 0;  // 0: as the columns need
  int64_t column_stride = 1;
  int64_t shift = 0;       // elements between the block's own alignment and the first feature
  bool backwards = false;  // both strides negative: the last element comes first
};

// One batch of Gaussian classes, taken in as two updates, against the reference.
template <typename Type, typename Label>
void check_batch(int64_t num_rows, int64_t num_columns, int64_t num_classes, Labelling labelling,
                 Layout layout, const std::string& name) {
  std::mt19937_64 random(17);
  const int64_t column_stride = layout.column_stride;
  const int64_t row_stride =
      layout.row_stride != 0 ? layout.row_stride : num_columns * column_stride;
  const int64_t extent =
      num_rows == 0 ? 0 : (num_rows - 1) * row_stride + (num_columns - 1) * column_stride + 1;
  const Block<typename Type::Stored> features(extent, layout.shift);
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < extent; ++i) features[i] = Type::encode(normal(random));
  const Block<Label> labels = make_labels<Label>(num_rows, num_classes, labelling, random);
  for (int64_t i = 0; column_stride == 1 && row_stride >= num_columns && i < num_rows; ++i) {
    if (labels[i] == kIgnore) continue;
    for (int64_t j = 0; j < num_columns; ++j) {  // classes apart from one another
      typename Type::Stored& feature = features[i * row_stride + j];
      feature = Type::encode(Type::decode(feature) + 3.0 * static_cast<double>(labels[i] % 5));
    }
  }
  const int64_t sign = layout.backwards ? -1 : 1;
  const auto* origin = features.data() + (layout.backwards ? extent - 1 : 0);
  const LabelType label_type = sizeof(Label) == 4 ? LabelType::kInt32 : LabelType::kInt64;
  const int64_t half = num_rows / 2;

  const State found =
      same_everywhere(num_classes, num_columns, name, [&](const State& state, int num_threads) {
        for (const auto& [begin, end] : {std::pair{int64_t{0}, half}, {half, num_rows}}) {
          const Features part = {origin + sign * begin * row_stride,
                                 Type::type,
                                 end - begin,
                                 num_columns,
                                 sign * row_stride,
                                 sign * column_stride};
          const Labels part_labels = {labels.data() + begin, label_type, kIgnore};
          expect_ok(class_moments(part, part_labels, state.view(), num_threads), name);
        }
      });
  const State wanted = two_passes(
      num_rows, num_columns, num_classes,
      [&](int64_t i, int64_t j) {
        return Type::decode(origin[sign * (i * row_stride + j * column_stride)]);
      },
      [&](int64_t i) { return static_cast<int64_t>(labels[i]); });
  expect_close(found, wanted, name);
}

template <typename Type>
void check_type(const std::string& type) {
  const auto check = [&](int64_t n, int64_t d, int64_t k, Labelling labelling, Layout layout,
                         const std::string& name) {
    const std::string full_name = type + " " + name + " (" + std::to_string(n) + ", " +
                                  std::to_string(d) + ", " + std::to_string(k) + ")";
    check_batch<Type, int64_t>(n, d, k, labelling, layout, full_name + " int64 labels");
    check_batch<Type, int32_t>(n, d, k, labelling, layout, full_name + " int32 labels");
  };
  const Layout plain;
  Layout shifted;
  shifted.shift = 1;
  for (int64_t d = 1; d <= 40; ++d) {
    check(150, d, 3, Labelling::kShuffled, plain, "odd widths");
    check(67, d, 2, Labelling::kWithIgnored, shifted, "odd widths, one element off");
  }
  for (const int64_t d : {63, 65, 127, 255, 1023, 1025, 2051}) {
    check(140, d, 3, Labelling::kShuffled, shifted, "column tiles");
  }
  check(0, 5, 3, Labelling::kShuffled, plain, "no rows");
  check(1, 1, 1, Labelling::kShuffled, plain, "one number");
  check(1000, 1, 1, Labelling::kShuffled, plain, "one column, one class");
  check(1000, 17, 1, Labelling::kShuffled, shifted, "one class");
  check(5, 9, 4000, Labelling::kShuffled, plain, "far more classes than rows");
  check(3000, 3, 2500, Labelling::kShuffled, plain, "about as many classes as rows");
  check(700, 33, 7, Labelling::kSkewed, plain, "skewed");
  check(700, 33, 7, Labelling::kSorted, plain, "sorted");

  const auto layout = [](int64_t row_stride, int64_t column_stride, bool backwards) {
    return Layout{row_stride, column_stride, 0, backwards};
  };
  check(300, 19, 4, Labelling::kShuffled, layout(19, 1, true), "negative strides");
  check(300, 19, 4, Labelling::kShuffled, layout(64, 3, false), "column stride 3");
  check(300, 19, 4, Labelling::kShuffled, layout(64, 3, true), "column stride -3");
  check(300, 1100, 2, Labelling::kShuffled, layout(1, 300, false), "column-major");
  check(300, 19, 4, Labelling::kShuffled, layout(1, 1, false), "overlapping rows");
  check(300, 19, 4, Labelling::kShuffled, layout(1000, 1, false), "rows far apart");
}

// Batches large enough to be split among threads, in each way of splitting.
void check_large() {
  const Layout shifted = {0, 1, 1, false};
  check_batch<Float32, int64_t>(160000, 9, 3, Labelling::kShuffled, shifted, "many short rows");
  check_batch<Float32, int32_t>(160000, 9, 3, Labelling::kSkewed, shifted, "many rows, skewed");
  check_batch<BFloat16, int32_t>(160000, 17, 3, Labelling::kSorted, shifted, "many bfloat16 rows");
  check_batch<Float32, int64_t>(140000, 9, 100, Labelling::kWithIgnored, shifted, "many classes");
  check_batch<Float32, int64_t>(3000, 519, 30, Labelling::kShuffled, shifted, "long rows");
  check_batch<Float64, int64_t>(300, 3100, 200, Labelling::kShuffled, shifted, "several tiles");
  check_batch<Float32, int64_t>(160000, 9, 3, Labelling::kShuffled, {32, 3, 0, true},
                                "many rows, column stride -3");
}

}  // namespace

int main() {
  const std::pair<const char*, void (*)()> checks[] = {
      {"concurrent callers", check_concurrent_callers},
      {"fused multiply-add", check_fused_multiply_add},
      {"float32", [] { check_type<Float32>("float32"); }},
      {"float64", [] { check_type<Float64>("float64"); }},
      {"float16", [] { check_type<Float16>("float16"); }},
      {"bfloat16", [] { check_type<BFloat16>("bfloat16"); }},
      {"large batches", check_large},
      {"bad labels", check_bad_labels},
      {"not finite", check_nonfinite},
      {"stride 0", check_zero_stride},
      {"huge strides", check_huge_strides},
      {"N * d > 2^31", check_huge_matrix},
      {"most classes", check_most_classes},
      {"kept scratch", check_kept_scratch},
  };
  for (const auto& [name, check] : checks) {
    check();
    std::printf("ok  %s\n", name);
    std::fflush(stdout);
  }
  // `make neon` compares these of two machines.
  uint64_t first = 0;
  for (const std::string& level : available_simd_levels()) {
    expect(set_simd_level(level), "cannot choose level " + level);
    const uint64_t hash = hash_of_updates();
    if (first == 0) first = hash;
    expect(hash == first, "other bits than at level " + available_simd_levels().front());
    std::printf("bits %016llx at level %s\n", static_cast<unsigned long long>(hash), level.c_str());
  }
  return 0;
}
