// class_moments against a two-pass double computation, for the sanitizers: `make sanitize`.
//
// Links the core alone: no Python, no test framework. Every array is a heap block of exactly the
// size that the interface allows the core to touch, so that AddressSanitizer sees one element too
// many; several threads and concurrent callers are there for ThreadSanitizer, odd addresses and
// far strides for UndefinedBehaviorSanitizer. Accuracy in depth is tested from Python.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "class_moments.h"
#include "cpu/batch.h"
#include "cpu/simd.h"
#include "reference.h"

namespace {

using namespace deeprep;
using namespace deeprep::testing;

constexpr int kThreadCounts[] = {1, 2, 8};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED at SIMD level %s: %s\n", simd_level().c_str(), what.c_str());
  std::exit(1);
}

void expect(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

void expect_close(const State& found, const State& wanted, const std::string& name) {
  for (int64_t k = 0; k < wanted.counts.size(); ++k) {
    expect(found.counts[k] == wanted.counts[k], name + ": counts of class " + std::to_string(k));
    const double error = std::fabs(found.sumsq[k] - wanted.sumsq[k]);
    expect(error <= 1e-5 * wanted.sumsq[k] + 1e-12, name + ": sumsq of class " + std::to_string(k));
  }
  for (int64_t i = 0; i < wanted.means.size(); ++i) {
    expect(std::fabs(found.means[i] - wanted.means[i]) <= 1e-5,
           name + ": mean " + std::to_string(i));
  }
}

void expect_ok(const Status& status, const std::string& name) {
  expect(status.ok(), name + ": " + describe(status, 0, kIgnore));
}

// Runs `update` (on a fresh state, with a number of threads) at every SIMD level and thread count,
// demands the same bits of all, and returns the state.
State same_everywhere(int64_t num_classes, int64_t num_columns, const std::string& name,
                      const std::function<void(const State&, int)>& update) {
  std::unique_ptr<State> first;
  for (const std::string& level : available_simd_levels()) {
    expect(set_simd_level(level), name + ": cannot choose level " + level);
    for (const int num_threads : kThreadCounts) {
      auto state = std::make_unique<State>(num_classes, num_columns);
      update(*state, num_threads);
      if (first == nullptr) {
        first = std::move(state);
      } else {
        expect(state->same_bits(*first),
               name + ": other bits with " + std::to_string(num_threads) + " threads");
      }
    }
  }
  return std::move(*first);
}

// ------------------------------------------------------------------------ random batches

enum class Labelling { kShuffled, kSorted, kSkewed, kWithIgnored };

struct Layout {
  int64_t row_stride = 0;  // 0: as the columns need
  int64_t column_stride = 1;
  int64_t shift = 0;       // elements between the block's own alignment and the first feature
  bool backwards = false;  // both strides negative: the last element comes first
};

template <typename Label>
Block<Label> make_labels(int64_t num_rows, int64_t num_classes, Labelling labelling,
                         std::mt19937_64& random) {
  Block<Label> labels(num_rows, 1);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t drawn = static_cast<int64_t>(random() % num_classes);
    const bool rare = random() % 10 == 0;
    int64_t label = drawn;
    if (labelling == Labelling::kSorted) label = i * num_classes / num_rows;
    if (labelling == Labelling::kSkewed && !rare) label = num_classes - 1;
    if (labelling == Labelling::kWithIgnored && rare) label = kIgnore;
    labels[i] = static_cast<Label>(label);
  }
  return labels;
}

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

// ------------------------------------------------------------------------ special cases

void check_bad_labels() {
  const int64_t num_rows = 5000;
  const int64_t num_columns = 3;
  const int64_t num_classes = 4;
  const Block<float> features(num_rows * num_columns);
  for (const int64_t wrong :
       {int64_t{-1}, num_classes, kIgnore - 1, int64_t{1} << 32,
        std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}) {
    for (const int64_t row : {int64_t{0}, int64_t{4095}, int64_t{4096}, num_rows - 1}) {
      const Block<int64_t> labels(num_rows);
      labels[row] = wrong;
      labels[num_rows - 1] = wrong;
      State state(num_classes, num_columns);
      for (int64_t i = 0; i < state.means.size(); ++i) state.means[i] = 0.5;
      for (int64_t k = 0; k < num_classes; ++k) state.counts[k] = k;
      State before(num_classes, num_columns);
      std::memcpy(before.means.data(), state.means.data(), state.means.bytes());
      std::memcpy(before.counts.data(), state.counts.data(), state.counts.bytes());
      const Status status = class_moments(
          {features.data(), FeatureType::kFloat32, num_rows, num_columns, num_columns, 1},
          {labels.data(), LabelType::kInt64, kIgnore}, state.view(), 2);
      expect(status.code == Code::kBadLabel, "wrong label accepted");
      expect(status.index == row && status.value == wrong, "wrong label misreported");
      expect(state.same_bits(before), "state written in spite of a wrong label");
    }
  }
}

bool is_any_nan_but_one(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isnan(value) && bits != 0x7ff8000000000000u;
}

// NaNs of any sign and payload, infinities and overflows: what is not a number is one NaN.
void check_nonfinite() {
  const uint32_t patterns[] = {0x7fc00000, 0xffc00000, 0x7f812345, 0xff812345,
                               0x7f800000, 0xff800000, 0x7f7fffff, 0xff7fffff};
  const int64_t num_classes = 3;
  std::mt19937_64 random(23);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t num_rows = 1 + static_cast<int64_t>(random() % (trial % 20 == 0 ? 9000 : 300));
    const int64_t num_columns = 1 + static_cast<int64_t>(random() % 200);
    const Block<float> features(num_rows * num_columns);
    for (int64_t i = 0; i < features.size(); ++i) features[i] = static_cast<float>(normal(random));
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&features[static_cast<int64_t>(random() % features.size())],
                  &patterns[random() % 8], sizeof(float));
    }
    const Block<int64_t> labels =
        make_labels<int64_t>(num_rows, num_classes, Labelling::kShuffled, random);
    const int64_t half = num_rows / 2;
    const std::string name = "not finite, trial " + std::to_string(trial);
    const State found =
        same_everywhere(num_classes, num_columns, name, [&](const State& state, int num_threads) {
          for (const auto& [begin, end] : {std::pair{int64_t{0}, half}, {half, num_rows}}) {
            expect_ok(class_moments({features.data() + begin * num_columns, FeatureType::kFloat32,
                                     end - begin, num_columns, num_columns, 1},
                                    {labels.data() + begin, LabelType::kInt64, kIgnore},
                                    state.view(), num_threads),
                      name);
          }
        });
    for (int64_t i = 0; i < found.means.size(); ++i) {
      expect(!is_any_nan_but_one(found.means[i]), name + ": another NaN as a mean");
    }
    for (int64_t k = 0; k < num_classes; ++k) {
      expect(!is_any_nan_but_one(found.sumsq[k]), name + ": another NaN as a sum of squares");
    }
  }
}

// Every row is the same row: only d numbers and the labels exist.
void check_zero_stride() {
  const int64_t num_columns = 13;
  const Block<float> row(num_columns);
  for (int64_t j = 0; j < num_columns; ++j) row[j] = static_cast<float>(j) + 0.25F;
  const int64_t num_rows = 40000;
  const Block<int32_t> labels(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) labels[i] = static_cast<int32_t>(i % 3);
  const State found = same_everywhere(3, num_columns, "stride 0", [&](const State& state, int n) {
    expect_ok(class_moments({row.data(), FeatureType::kFloat32, num_rows, num_columns, 0, 1},
                            {labels.data(), LabelType::kInt32, kIgnore}, state.view(), n),
              "stride 0");
  });
  for (int64_t k = 0; k < 3; ++k) {
    expect(found.sumsq[k] == 0.0, "stride 0: identical rows have no scatter");
    for (int64_t j = 0; j < num_columns; ++j) {
      expect(found.means[k * num_columns + j] == row[j], "stride 0: the mean is the row");
    }
  }
}

// Address space without memory behind it, but for the pages that are touched.
class Reservation {
 public:
  explicit Reservation(int64_t bytes) : bytes_(bytes) {
    address_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    expect(address_ != MAP_FAILED, "cannot reserve address space");
  }
  ~Reservation() { munmap(address_, bytes_); }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  float* data() const { return static_cast<float*>(address_); }

 private:
  void* address_;
  int64_t bytes_;
};

// Offsets beyond 2^31 elements, forwards and backwards, by rows and by columns.
void check_huge_strides() {
  const int64_t stride = (int64_t{1} << 30) + 3;
  const Reservation memory(3 * stride * static_cast<int64_t>(sizeof(float)));
  const int64_t labels_of_rows[] = {0, 1, 0};
  const auto check = [&](const std::string& name, float* origin, int64_t num_columns,
                         int64_t row_stride, int64_t column_stride) {
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < num_columns; ++j) {
        origin[i * row_stride + j * column_stride] = static_cast<float>(7 * i + j * j);
      }
    }
    const State found = same_everywhere(2, num_columns, name, [&](const State& state, int n) {
      expect_ok(
          class_moments({origin, FeatureType::kFloat32, 3, num_columns, row_stride, column_stride},
                        {labels_of_rows, LabelType::kInt64, kIgnore}, state.view(), n),
          name);
    });
    const State wanted = two_passes(
        3, num_columns, 2,
        [&](int64_t i, int64_t j) { return origin[i * row_stride + j * column_stride]; },
        [&](int64_t i) { return labels_of_rows[i]; });
    expect_close(found, wanted, name);
  };
  check("huge row stride", memory.data(), 11, stride, 1);
  check("huge negative row stride", memory.data() + 2 * stride, 11, -stride, 1);
  check("huge column stride", memory.data(), 3, 1, stride);
  check("huge negative column stride", memory.data() + 2 * stride, 3, 11, -stride);
}

// N * d > 2^31 for true; all rows but three are ignored, and ignored rows are not read.
void check_huge_matrix() {
  const int64_t num_rows = (int64_t{1} << 21) + 5;
  const int64_t num_columns = 1031;
  const Reservation memory(num_rows * num_columns * static_cast<int64_t>(sizeof(float)));
  const Block<int32_t> labels(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) labels[i] = kIgnore;
  const int64_t kept[] = {3, num_rows / 2, num_rows - 1};
  for (const int64_t i : kept) {
    labels[i] = 1;
    for (int64_t j = 0; j < num_columns; ++j) {
      memory.data()[i * num_columns + j] = static_cast<float>((i + j) % 11);
    }
  }
  const std::string name = "N * d > 2^31";
  const State found = same_everywhere(2, num_columns, name, [&](const State& state, int n) {
    expect_ok(
        class_moments({memory.data(), FeatureType::kFloat32, num_rows, num_columns, num_columns, 1},
                      {labels.data(), LabelType::kInt32, kIgnore}, state.view(), n),
        name);
  });
  const State wanted = two_passes(
      3, num_columns, 2,
      [&](int64_t i, int64_t j) { return memory.data()[kept[i] * num_columns + j]; },
      [](int64_t) { return 1; });
  expect_close(found, wanted, name);
}

// The last class of the largest state; with one more class, an error before any address is read.
void check_most_classes() {
  const int64_t state_bytes = kMaxClasses * static_cast<int64_t>(sizeof(double));
  const Reservation counts(state_bytes);
  const Reservation means(state_bytes);
  const Reservation sumsq(state_bytes);
  const ClassMoments state = {reinterpret_cast<int64_t*>(counts.data()),
                              reinterpret_cast<double*>(means.data()),
                              reinterpret_cast<double*>(sumsq.data()), kMaxClasses};
  const float features[] = {1.0F, 3.0F};
  const int64_t labels[] = {kMaxClasses - 1, kMaxClasses - 1};
  expect_ok(class_moments({features, FeatureType::kFloat32, 2, 1, 1, 1},
                          {labels, LabelType::kInt64, kIgnore}, state, 1),
            "most classes");
  expect(state.counts[kMaxClasses - 1] == 2 && state.means[kMaxClasses - 1] == 2.0 &&
             state.sumsq[kMaxClasses - 1] == 2.0,
         "the last class of the largest state is not updated");
  for (const int64_t num_rows : {0, 2}) {
    const Status status = class_moments({nullptr, FeatureType::kFloat32, num_rows, 1, 1, 1},
                                        {nullptr, LabelType::kInt64, kIgnore},
                                        {nullptr, nullptr, nullptr, kMaxClasses + 1}, 1);
    expect(status.code == Code::kTooManyClasses, "too many classes accepted");
    expect(describe(status, kMaxClasses + 1, kIgnore) ==
               "num_classes is 2147483649, expected at most 2147483648",
           "too many classes misreported");
  }
}

// A small batch's scratch is kept for the next one, a large batch's is given back when its call
// ends.
void check_kept_scratch() {
  const int64_t num_rows = 70000;
  const int64_t num_classes = 1000;  // so many that all rows are one group
  const Block<float> features(num_rows);
  const Block<int64_t> labels(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) labels[i] = i % num_classes;
  const State state(num_classes, 1);
  const auto update = [&](int64_t rows) {
    return class_moments({features.data(), FeatureType::kFloat32, rows, 1, 1, 1},
                         {labels.data(), LabelType::kInt64, kIgnore}, state.view(), 1);
  };
  expect_ok(update(64), "a small batch");
  const int64_t kept = kept_scratch_bytes();
  expect(kept > 0, "the scratch of a small batch is not kept");
  expect_ok(update(64), "a small batch");
  expect(kept_scratch_bytes() == kept, "the same batch takes other scratch");
  expect_ok(update(num_rows), "a large batch");
  expect(kept_scratch_bytes() == 0, "the scratch of a large batch is kept");
  labels[num_rows - 1] = num_classes;
  expect(update(num_rows).code == Code::kBadLabel, "wrong label accepted");
  expect(kept_scratch_bytes() == 0, "the scratch of a refused batch is kept");
}

// Callers on threads of their own, each with its own state, over the same features.
void check_concurrent_callers() {
  const int64_t num_rows = 70000;
  const int64_t num_columns = 9;
  const int64_t num_classes = 5;
  const Block<float> features(num_rows * num_columns);
  const Block<int64_t> labels(num_rows);
  for (int64_t i = 0; i < features.size(); ++i) features[i] = static_cast<float>(i % 101);
  for (int64_t i = 0; i < num_rows; ++i) labels[i] = i % num_classes;
  std::vector<State> states;
  for (int i = 0; i < 3; ++i) states.emplace_back(num_classes, num_columns);
  std::vector<std::thread> callers;
  for (const State& state : states) {
    callers.emplace_back([&] {
      expect_ok(class_moments(
                    {features.data(), FeatureType::kFloat32, num_rows, num_columns, num_columns, 1},
                    {labels.data(), LabelType::kInt64, kIgnore}, state.view(), 2),
                "concurrent callers");
    });
  }
  for (std::thread& caller : callers) caller.join();
  expect(states[1].same_bits(states[0]) && states[2].same_bits(states[0]),
         "concurrent callers disagree");
}

}  // namespace

int main() {
  const std::pair<const char*, void (*)()> checks[] = {
      {"concurrent callers", check_concurrent_callers},
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
  for (const std::string& level : available_simd_levels())
    std::printf("at level %s\n", level.c_str());
  return 0;
}
