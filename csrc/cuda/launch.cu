// The launchers of the kernels on CUDA's streams, with CUB for the sort and the sum of
// key_sort.cuh.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <optional>

#include "cuda/chunk_path.h"
#include "cuda/class_moments.h"
#include "cuda/launch.h"
#include "cuda/shift_rows.cuh"
#include "cuda/squared_distances.cuh"

namespace deeprep::cuda {
namespace {

// Queues work on a stream and keeps the first error.
class StreamDevice {
 public:
  explicit StreamDevice(Stream stream) : stream_(static_cast<cudaStream_t>(stream)) {
    check(cudaGetDevice(&device_));
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device_));
  }

  Status status() const {
    if (error_ == cudaSuccess) return {};
    return {Code::kCudaError, static_cast<int64_t>(error_)};
  }

  static int threads_per_block() { return 256; }
  static int most_threads() { return 1024; }  // of a block

  bool use_chunks(int64_t num_rows, int64_t num_columns, FeatureType type,
                  int64_t num_classes) const {
    return cuda::use_chunks(num_rows, num_columns, type, num_classes, multiprocessors_);
  }

  int64_t segment_teams(int64_t num_rows, int64_t num_classes, int64_t num_items,
                        int64_t team_size) const {
    return cuda::segment_teams(num_rows, num_classes, num_items, team_size, multiprocessors_);
  }

  static int64_t place(const char*, int64_t bytes) {
    return ceil_div(bytes, kScratchAlignment) * kScratchAlignment;
  }

  // Enough to fill the device a few times over; kernels walk what is more.
  int64_t max_blocks(int threads) const { return int64_t{8} * multiprocessors_ * (2048 / threads); }

  // A kernel that starts when all work ahead of it in the stream has ended.
  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, Arguments... arguments) {
    queue(kernel, blocks, threads, false, arguments...);
  }

  // A kernel that follows another one of the same update, and may start before that has ended; see
  // simt::wait_for_previous_kernel().
  template <typename... Parameters, typename... Arguments>
  void launch_next(void (*kernel)(Parameters...), int64_t blocks, int threads,
                   Arguments... arguments) {
    if (!launches_early_) launches_early_ = can_wait_for_previous_kernel();
    queue(kernel, blocks, threads, *launches_early_, arguments...);
  }

  size_t sort_bytes(int64_t num_rows) {
    const uint32_t* in = nullptr;
    uint32_t* out = nullptr;
    size_t bytes = 0;
    check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, in, out, in, out, num_rows, 0, 32,
                                          stream_));
    return bytes;
  }

  void sort(void* temporary, size_t bytes, const uint32_t* keys, uint32_t* sorted_keys,
            const uint32_t* rows, uint32_t* sorted_rows, int64_t num_rows, int key_bits) {
    if (error_ != cudaSuccess) return;
    check(cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, sorted_keys, rows, sorted_rows,
                                          num_rows, 0, key_bits, stream_));
  }

  size_t sum_bytes(int64_t count) {
    const int64_t* in = nullptr;
    int64_t* out = nullptr;
    size_t bytes = 0;
    check(cub::DeviceScan::ExclusiveSum(nullptr, bytes, in, out, count, stream_));
    return bytes;
  }

  // sums[i]: of all values before i.
  void sum(void* temporary, size_t bytes, const int64_t* values, int64_t* sums, int64_t count) {
    if (error_ != cudaSuccess) return;
    check(cub::DeviceScan::ExclusiveSum(temporary, bytes, values, sums, count, stream_));
  }

 private:
  // CUDA keeps the error too, until it is asked: CUB would take it for its own.
  void check(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();
    if (error_ == cudaSuccess) error_ = error;
  }

  // Whether the code that runs on this device is compiled for waiting: an older architecture's,
  // which a build for that alone hands to a newer device, is not. Graphs take such launches from
  // CUDA 12.3 on, toolkit and driver.
  bool can_wait_for_previous_kernel() {
#if CUDART_VERSION >= 12030
    int driver = 0;
    check(cudaDriverGetVersion(&driver));
    if (driver < 12030) return false;
    int major = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_));
    if (major < 9) return false;
    cudaFuncAttributes code = {};
    check(cudaFuncGetAttributes(&code, add_to_state));
    return code.ptxVersion >= 90;
#else
    return false;
#endif
  }

  template <typename... Parameters, typename... Arguments>
  void queue(void (*kernel)(Parameters...), int64_t blocks, int threads, bool early,
             Arguments... arguments) {
    if (error_ != cudaSuccess) return;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream_;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = early ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  cudaStream_t stream_;
  std::optional<bool> launches_early_;
  int device_ = 0;
  int multiprocessors_ = 1;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

const char* build_description() { return DEEPREP_CUDA_BUILD; }

int64_t class_moments_scratch(int64_t num_rows, int64_t num_columns, FeatureType type,
                              int64_t num_classes) {
  StreamDevice device(nullptr);
  return scratch_bytes(device, num_rows, num_columns, type, num_classes);
}

Status class_moments(const Features& features, const Labels& labels, const ClassMoments& state,
                     BadLabel* bad_label, void* scratch, int64_t scratch_bytes, Stream stream) {
  StreamDevice device(stream);
  const Status status = launch_class_moments(device, features, labels, state, bad_label,
                                             static_cast<char*>(scratch), scratch_bytes);
  return device.status().ok() ? status : device.status();
}

Status shift_rows(const Features& features, const Labels& labels, const ClassShifts& shifts,
                  void* out, Stream stream) {
  StreamDevice device(stream);
  launch_shift_rows(device, features, labels, shifts, out);
  return device.status();
}

Status squared_distances(const double* points, const double* center, double* out,
                         int64_t num_points, int64_t num_columns, Stream stream) {
  StreamDevice device(stream);
  launch_squared_distances(device, points, center, out, num_points, num_columns);
  return device.status();
}

const char* describe_error(int64_t error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace deeprep::cuda
