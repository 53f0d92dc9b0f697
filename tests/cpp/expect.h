// What the tests of the core demand: the reference's numbers, and the same bits at every SIMD level
// and with any number of threads. And labels to draw.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>

#include "class_moments.h"
#include "cpu/row_order.h"
#include "cpu/simd.h"
#include "reference.h"

namespace deeprep::testing {

constexpr int kThreadCounts[] = {1, 2, 8};

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED at SIMD level %s: %s\n", simd_level().c_str(), what.c_str());
  std::exit(1);
}

inline void expect(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

inline void expect_close(const State& found, const State& wanted, const std::string& name) {
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

inline void expect_ok(const Status& status, const std::string& name) {
  expect(status.ok(), name + ": " + describe(status, 0, kIgnore));
}

// Runs `update` (on a fresh state, with a number of threads) at every SIMD level, in both orders of
// rows and with every number of threads, demands the same bits of all, and returns the state.
inline State same_everywhere(int64_t num_classes, int64_t num_columns, const std::string& name,
                             const std::function<void(const State&, int)>& update) {
  std::unique_ptr<State> first;
  for (const std::string& level : available_simd_levels()) {
    expect(set_simd_level(level), name + ": cannot choose level " + level);
    for (const char* order : {"class", "input"}) {
      expect(set_row_order(order), name + ": cannot choose the order " + order);
      for (const int num_threads : kThreadCounts) {
        auto state = std::make_unique<State>(num_classes, num_columns);
        update(*state, num_threads);
        if (first == nullptr) {
          first = std::move(state);
        } else {
          expect(state->same_bits(*first), name + ": other bits at level " + level + ", in " +
                                               order + " order, with " +
                                               std::to_string(num_threads) + " threads");
        }
      }
    }
  }
  set_row_order("auto");
  return std::move(*first);
}

enum class Labelling { kShuffled, kSorted, kSkewed, kWithIgnored };

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

}  // namespace deeprep::testing
