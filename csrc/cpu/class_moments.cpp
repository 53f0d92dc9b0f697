// class_moments on the CPU. plan.h says what is computed, and in which order; who does what is said
// in one_group.cpp and several_groups.cpp.
//
// Long rows are visited in class order, so that a class's accumulators stay in the first-level
// cache: a stable counting sort of a block's labels, then class by class. They are then scattered
// reads, which small blocks keep within few pages; not smaller, since closing the chunks of K
// classes costs K * d float64 updates a block. Short rows of few classes are visited as they come
// (row_order.h). Tried and slower, two threads:
// - prefetching the next block in sequence: slower in 5 of 6 cells, by up to 1.6 x, one thread;
// - one block a group: 1.07 x for d = 512, K = 100.
#include "class_moments.h"

#include <new>

#include "cpu/batch.h"

namespace deeprep {
namespace {

// The first bad label; there is one.
Status find_bad_label(const Labels& labels, int64_t num_classes) {
  return visit_labels(labels.data, labels.type, [&](const auto* values) -> Status {
    int64_t i = 0;
    while ((values[i] >= 0 && values[i] < num_classes) || values[i] == labels.ignore_index) ++i;
    return {Code::kBadLabel, i, values[i]};
  });
}

}  // namespace

Status class_moments(const Features& features, const Labels& labels, const ClassMoments& state,
                     int num_threads) {
  if (state.num_classes > kMaxClasses) {
    return {Code::kTooManyClasses, kMaxClasses, state.num_classes};
  }
  if (features.num_rows == 0) return {};
  try {
    const Batch batch(features, labels, state, num_threads);
    const auto merge = batch.plan.num_groups == 1 ? merge_one_group : merge_several_groups;
    return merge(batch) ? Status{} : find_bad_label(labels, state.num_classes);
  } catch (const std::bad_alloc&) {
    return {Code::kOutOfMemory};
  }
}

}  // namespace deeprep
