// Rows moved by what their class says, in one read of the features:
//
//     out_i = (x_i - pivots[k]) * scale + offsets[k],  k = labels[i],
//     or 0 where labels[i] == ignore_index
//
// Without offsets the result is in the accumulator type of the features, float or double for
// float64 features: what the pooled within-class scatter multiplies by itself, one bounded block of
// rows at a time. With offsets it is in the type of the features: the gradient of a function of the
// class moments, whose row i is
//
//     g_mean[k] / n_k + 2 g_sumsq[k] (x_i - mu_k).
#pragma once

#include "class_moments.h"

namespace deeprep {

struct ClassShifts {
  const void* pivots;    // K x d accumulators
  const double* scales;  // K with offsets; without, one for all, or null for 1
  const void* offsets;   // K x d accumulators, or null for none
};

// Everything is contiguous, out: N x d. No label is bad: class_moments() has checked them before.
void shift_rows(const Features& features, const Labels& labels, const ClassShifts& shifts,
                void* out, int num_threads);

}  // namespace deeprep
