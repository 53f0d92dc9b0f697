// Python module `_simt`: the CUDA entry points of deeprep/_core.pyi, executed on host memory.
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>

#include "host_device.h"

namespace py = pybind11;
using namespace deeprep;
using simt::HostDevice;

namespace {

struct Schedule {
  uint64_t seed = 0;
  int threads_per_block = 256;
  int64_t max_blocks = 64;
  int64_t num_multiprocessors = 1;
};
Schedule schedule;

// Each call has a schedule of its own.
HostDevice next_device() {
  return {schedule.seed++, schedule.threads_per_block, schedule.max_blocks, simt::Pass::kOfTheShape,
          schedule.num_multiprocessors};
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The enumerations are deeprep._core's, which holds them under the same numbers.
template <typename Type>
Type number_of(const py::object& value) {
  return static_cast<Type>(py::int_(value).cast<int>());
}

void expect_no_stream(uintptr_t stream) {
  if (stream != 0) throw std::invalid_argument("the host has no streams");
}

// Torch aligns host memory to 64 bytes, device memory to more than kScratchAlignment.
constexpr int64_t kSlack = cuda::kScratchAlignment - 1;

int64_t class_moments_cuda_scratch(int64_t num_rows, int64_t num_columns,
                                   const py::object& feature_type, int64_t num_classes) {
  if (num_rows < 1) throw std::invalid_argument("scratch for a batch without rows");
  HostDevice device = next_device();
  const Features features = {
      nullptr, number_of<FeatureType>(feature_type), num_rows, num_columns, 0, 0};
  return simt::scratch_bytes(device, features, num_classes) + kSlack;
}

void class_moments_cuda(uintptr_t features, const py::object& feature_type, int64_t num_rows,
                        int64_t num_columns, int64_t row_stride, int64_t column_stride,
                        uintptr_t labels, const py::object& label_type, int64_t ignore_index,
                        uintptr_t counts, uintptr_t means, uintptr_t sumsq, int64_t num_classes,
                        uintptr_t bad_label, uintptr_t scratch, int64_t scratch_bytes,
                        uintptr_t stream) {
  expect_no_stream(stream);
  if (scratch_bytes !=
      class_moments_cuda_scratch(num_rows, num_columns, feature_type, num_classes)) {
    throw std::invalid_argument("scratch of another size");
  }
  std::memset(pointer<void>(scratch), 0xff, static_cast<size_t>(scratch_bytes));
  const uintptr_t aligned = (scratch + kSlack) / cuda::kScratchAlignment * cuda::kScratchAlignment;
  HostDevice device = next_device();
  const Status status = cuda::launch_class_moments(
      device,
      {pointer<const void>(features), number_of<FeatureType>(feature_type), num_rows, num_columns,
       row_stride, column_stride},
      {pointer<const void>(labels), number_of<LabelType>(label_type), ignore_index},
      {pointer<int64_t>(counts), pointer<double>(means), pointer<double>(sumsq), num_classes},
      pointer<cuda::BadLabel>(bad_label), pointer<char>(aligned), scratch_bytes - kSlack);
  if (!status.ok()) throw std::runtime_error(describe(status, num_classes, ignore_index));
}

void shift_rows_cuda(uintptr_t features, const py::object& feature_type, int64_t num_rows,
                     int64_t num_columns, int64_t row_stride, int64_t column_stride,
                     uintptr_t labels, const py::object& label_type, int64_t ignore_index,
                     uintptr_t pivots, uintptr_t scales, uintptr_t offsets, uintptr_t out,
                     uintptr_t stream) {
  expect_no_stream(stream);
  HostDevice device = next_device();
  cuda::launch_shift_rows(
      device,
      {pointer<const void>(features), number_of<FeatureType>(feature_type), num_rows, num_columns,
       row_stride, column_stride},
      {pointer<const void>(labels), number_of<LabelType>(label_type), ignore_index},
      {pointer<const void>(pivots), pointer<const double>(scales), pointer<const void>(offsets)},
      pointer<void>(out));
}

void squared_distances_cuda(uintptr_t points, uintptr_t center, uintptr_t out, int64_t num_points,
                            int64_t num_columns, uintptr_t stream) {
  expect_no_stream(stream);
  HostDevice device = next_device();
  cuda::launch_squared_distances(device, pointer<const double>(points),
                                 pointer<const double>(center), pointer<double>(out), num_points,
                                 num_columns);
}

}  // namespace

PYBIND11_MODULE(_simt, m) {
  m.doc() = "deeprep's CUDA kernels in the host executor.";
  m.def("class_moments_cuda_scratch", &class_moments_cuda_scratch);
  m.def("class_moments_cuda", &class_moments_cuda);
  m.def("shift_rows_cuda", &shift_rows_cuda);
  m.def("squared_distances_cuda", &squared_distances_cuda);
  m.def("set_schedule", [](uint64_t seed, int threads_per_block, int64_t max_blocks) {
    schedule = {seed, threads_per_block, max_blocks};
  });
}
