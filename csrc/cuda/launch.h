// The CUDA core as the bindings call it: everything is queued on a stream of the current device,
// nothing is allocated, nothing waits. Declared without CUDA's headers.
#pragma once

#include "../class_moments.h"
#include "../shift_rows.h"
#include "cuda/bad_label.h"

namespace deeprep::cuda {

using Stream = void*;  // a cudaStream_t

// Toolkit and architectures that the kernels were compiled for.
const char* build_description();

// Bytes of scratch for an update on the current device: its multiprocessors decide where classes
// are few, its sort where they are many.
int64_t class_moments_scratch(int64_t num_rows, int64_t num_columns, FeatureType type,
                              int64_t num_classes);

// See cuda/class_moments.h. Status: kTooManyClasses, or kScratchTooSmall if scratch_bytes are too
// few, and nothing done; kCudaError if a launch failed.
Status class_moments(const Features& features, const Labels& labels, const ClassMoments& state,
                     BadLabel* bad_label, void* scratch, int64_t scratch_bytes, Stream stream);

// As on the CPU, see shift_rows.h.
Status shift_rows(const Features& features, const Labels& labels, const ClassShifts& shifts,
                  void* out, Stream stream);

Status squared_distances(const double* points, const double* center, double* out,
                         int64_t num_points, int64_t num_columns, Stream stream);

// What CUDA calls an error.
const char* describe_error(int64_t error);

}  // namespace deeprep::cuda
