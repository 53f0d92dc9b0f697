// The public C++ interface of the core: raw pointers in, a Status out; nothing thrown.
//
//     n_k  = number of rows i with labels[i] == k
//     mu_k = (1 / n_k) sum_{i in k} x_i                  K x d
//     s_k  = sum_{i in k} |x_i - mu_k|^2                 K
//
// class_moments() merges the moments of one batch of rows into a running state, reading each
// feature once. Its result depends on the data and the state alone: any number of threads and any
// instruction set give the same bits (see plan.h for the order of operations).
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "status.h"

namespace deeprep {

// N x d features where they lie. Strides are in elements, of any size and sign, and need no
// alignment beyond the element's own.
struct Features {
  const void* data;
  FeatureType type;
  int64_t num_rows;
  int64_t num_columns;
  int64_t row_stride;
  int64_t column_stride;
};

// N contiguous labels; rows labelled ignore_index are skipped. A bad label is neither that nor a
// class in [0, num_classes).
struct Labels {
  const void* data;
  LabelType type;
  int64_t ignore_index;
};

// Most classes of a state: the numbers of classes are sorted as 32-bit ones.
constexpr int64_t kMaxClasses = int64_t{1} << 31;

// The running state, contiguous, updated in place. Sums of squares are over rows and columns.
struct ClassMoments {
  int64_t* counts;  // K
  double* means;    // K x d
  double* sumsq;    // K
  int64_t num_classes;
};

// On kTooManyClasses nothing is read. Labels are checked before anything is written: on kBadLabel,
// which names the first one, and on kOutOfMemory the state is untouched.
Status class_moments(const Features& features, const Labels& labels, const ClassMoments& state,
                     int num_threads);

}  // namespace deeprep
