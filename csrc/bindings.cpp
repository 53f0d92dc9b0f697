// Python bindings: releases the GIL and turns a Status into an exception; nothing else. Tensors
// arrive as addresses, checked by deeprep/base/validate.py, so the core needs no torch to build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "class_moments.h"
#include "cpu/row_order.h"
#include "cpu/simd.h"
#ifdef DEEPREP_HAS_CUDA
#include "cuda/launch.h"
#endif
#include "shift_rows.h"
#include "squared_distances.h"

namespace py = pybind11;
using namespace deeprep;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT: the one place where an address becomes a pointer
}

// Raises the exception that a status stands for, if any. num_classes and ignore_index: of a bad
// label.
void expect_ok(const Status& status, int64_t num_classes = 0, int64_t ignore_index = 0) {
  if (status.ok()) return;
  std::string message = describe(status, num_classes, ignore_index);
  PyObject* type = PyExc_ValueError;
  if (status.code == Code::kOutOfMemory) type = PyExc_MemoryError;
  if (status.code == Code::kScratchTooSmall) type = PyExc_RuntimeError;
#ifdef DEEPREP_HAS_CUDA
  if (status.code == Code::kCudaError) {
    type = PyExc_RuntimeError;
    message = cuda::describe_error(status.index);
  }
#endif
  PyErr_SetString(type, message.c_str());
  throw py::error_already_set();
}

void bound_class_moments(uintptr_t features, FeatureType feature_type, int64_t num_rows,
                         int64_t num_columns, int64_t row_stride, int64_t column_stride,
                         uintptr_t labels, LabelType label_type, int64_t ignore_index,
                         uintptr_t counts, uintptr_t means, uintptr_t sumsq, int64_t num_classes,
                         int num_threads) {
  Status status;
  {
    const py::gil_scoped_release unlocked;
    status = class_moments(
        {pointer<const void>(features), feature_type, num_rows, num_columns, row_stride,
         column_stride},
        {pointer<const void>(labels), label_type, ignore_index},
        {pointer<int64_t>(counts), pointer<double>(means), pointer<double>(sumsq), num_classes},
        num_threads);
  }
  expect_ok(status, num_classes, ignore_index);
}

void bound_shift_rows(uintptr_t features, FeatureType feature_type, int64_t num_rows,
                      int64_t num_columns, int64_t row_stride, int64_t column_stride,
                      uintptr_t labels, LabelType label_type, int64_t ignore_index,
                      uintptr_t pivots, uintptr_t scales, uintptr_t offsets, uintptr_t out,
                      int num_threads) {
  const py::gil_scoped_release unlocked;
  shift_rows(
      {pointer<const void>(features), feature_type, num_rows, num_columns, row_stride,
       column_stride},
      {pointer<const void>(labels), label_type, ignore_index},
      {pointer<const void>(pivots), pointer<const double>(scales), pointer<const void>(offsets)},
      pointer<void>(out), num_threads);
}

void bound_squared_distances(uintptr_t points, uintptr_t center, uintptr_t out, int64_t num_points,
                             int64_t num_columns, int num_threads) {
  const py::gil_scoped_release unlocked;
  squared_distances(pointer<const double>(points), pointer<const double>(center),
                    pointer<double>(out), num_points, num_columns, num_threads);
}

void bound_set_simd_level(const std::string& name) {
  if (set_simd_level(name)) return;
  std::string names;
  for (const std::string& level : available_simd_levels()) {
    names += (names.empty() ? "" : ", ") + level;
  }
  throw py::value_error("DEEPREP_SIMD is '" + name + "', expected one of: " + names);
}

void bound_set_row_order(const std::string& name) {
  if (set_row_order(name)) return;
  throw py::value_error("DEEPREP_ORDER is '" + name + "', expected one of: auto, class, input");
}

#ifdef DEEPREP_HAS_CUDA
void bound_class_moments_cuda(uintptr_t features, FeatureType feature_type, int64_t num_rows,
                              int64_t num_columns, int64_t row_stride, int64_t column_stride,
                              uintptr_t labels, LabelType label_type, int64_t ignore_index,
                              uintptr_t counts, uintptr_t means, uintptr_t sumsq,
                              int64_t num_classes, uintptr_t bad_label, uintptr_t scratch,
                              int64_t scratch_bytes, uintptr_t stream) {
  const Status status = cuda::class_moments(
      {pointer<const void>(features), feature_type, num_rows, num_columns, row_stride,
       column_stride},
      {pointer<const void>(labels), label_type, ignore_index},
      {pointer<int64_t>(counts), pointer<double>(means), pointer<double>(sumsq), num_classes},
      pointer<cuda::BadLabel>(bad_label), pointer<void>(scratch), scratch_bytes,
      pointer<void>(stream));
  expect_ok(status, num_classes, ignore_index);
}

void bound_shift_rows_cuda(uintptr_t features, FeatureType feature_type, int64_t num_rows,
                           int64_t num_columns, int64_t row_stride, int64_t column_stride,
                           uintptr_t labels, LabelType label_type, int64_t ignore_index,
                           uintptr_t pivots, uintptr_t scales, uintptr_t offsets, uintptr_t out,
                           uintptr_t stream) {
  const Status status = cuda::shift_rows(
      {pointer<const void>(features), feature_type, num_rows, num_columns, row_stride,
       column_stride},
      {pointer<const void>(labels), label_type, ignore_index},
      {pointer<const void>(pivots), pointer<const double>(scales), pointer<const void>(offsets)},
      pointer<void>(out), pointer<void>(stream));
  expect_ok(status);
}

void bound_squared_distances_cuda(uintptr_t points, uintptr_t center, uintptr_t out,
                                  int64_t num_points, int64_t num_columns, uintptr_t stream) {
  const Status status =
      cuda::squared_distances(pointer<const double>(points), pointer<const double>(center),
                              pointer<double>(out), num_points, num_columns, pointer<void>(stream));
  expect_ok(status);
}
#endif

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of deeprep; use deeprep.ops and deeprep.ClassScatter.";
  py::enum_<FeatureType>(m, "FeatureType")
      .value("float32", FeatureType::kFloat32)
      .value("float64", FeatureType::kFloat64)
      .value("float16", FeatureType::kFloat16)
      .value("bfloat16", FeatureType::kBFloat16);
  py::enum_<LabelType>(m, "LabelType")
      .value("int32", LabelType::kInt32)
      .value("int64", LabelType::kInt64);
  m.attr("compiler") = DEEPREP_COMPILER;
  m.def("class_moments", &bound_class_moments);
  m.def("shift_rows", &bound_shift_rows);
  m.def("squared_distances", &bound_squared_distances);
  m.def("simd_level", &simd_level);
  m.def("available_simd_levels", &available_simd_levels);
  m.def("set_simd_level", &bound_set_simd_level);
  m.def("row_order", &row_order);
  m.def("set_row_order", &bound_set_row_order);
#ifdef DEEPREP_HAS_CUDA
  m.attr("cuda") = cuda::build_description();
  m.def("class_moments_cuda_scratch", &cuda::class_moments_scratch);
  m.def("class_moments_cuda", &bound_class_moments_cuda);
  m.def("shift_rows_cuda", &bound_shift_rows_cuda);
  m.def("squared_distances_cuda", &bound_squared_distances_cuda);
#else
  m.attr("cuda") = false;
#endif
}
