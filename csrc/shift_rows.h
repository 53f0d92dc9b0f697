// Rows shifted by the pivot of their class, one bounded block at a time: what the pooled
// within-class scatter multiplies by itself.
//
//     out_i = x_i - pivots[labels[i]],  or 0 where labels[i] == ignore_index
//
// in the accumulator type of the features: float, or double for float64 features.
#pragma once

#include "class_moments.h"

namespace deeprep {

// pivots: num_classes x d, out: N x d, both contiguous. No label is bad: class_moments() has
// checked them before.
void shift_rows(const Features& features, const Labels& labels, const void* pivots, void* out,
                int num_threads);

}  // namespace deeprep
