#include "special_cases.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/batch.h"
#include "expect.h"

namespace deeprep::testing {
namespace {

bool is_any_nan_but_one(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isnan(value) && bits != 0x7ff8000000000000u;
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

}  // namespace

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

}  // namespace deeprep::testing
