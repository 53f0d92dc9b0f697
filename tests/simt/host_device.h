// The device of cuda/class_moments.h on the host: kernels run in the executor, the sort and the sum
// are the standard library's, device memory is host memory.
#pragma once

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "cuda/chunk_path.h"
#include "cuda/class_moments.h"
#include "cuda/shift_rows.cuh"
#include "cuda/squared_distances.cuh"

namespace simt {

// Which fused pass takes an update: that of its shape on num_multiprocessors, or always the same.
enum class Pass : int64_t { kOfTheShape, kSegments, kChunks };

class HostDevice {
 public:
  HostDevice(uint64_t seed, int threads_per_block, int64_t max_blocks, Pass pass,
             int64_t num_multiprocessors = 1)
      : executor_(seed),
        threads_per_block_(threads_per_block),
        max_blocks_(max_blocks),
        pass_(pass),
        num_multiprocessors_(num_multiprocessors) {}

  int threads_per_block() const { return threads_per_block_; }
  int most_threads() const { return threads_per_block_; }

  bool use_chunks(int64_t num_rows, int64_t num_columns, deeprep::FeatureType type,
                  int64_t num_classes) const {
    if (pass_ != Pass::kOfTheShape) return pass_ == Pass::kChunks;
    return deeprep::cuda::use_chunks(num_rows, num_columns, type, num_classes,
                                     num_multiprocessors_);
  }
  int64_t segment_teams(int64_t num_rows, int64_t num_classes, int64_t num_items,
                        int64_t team_size) const {
    return deeprep::cuda::segment_teams(num_rows, num_classes, num_items, team_size,
                                        num_multiprocessors_);
  }
  int64_t max_blocks(int) const { return max_blocks_; }

  // Each array ends where it ends: behind it is a gap that AddressSanitizer lets nobody touch.
  static int64_t place(const char* begin, int64_t bytes) {
    constexpr int64_t kAlignment = deeprep::cuda::kScratchAlignment;
    const int64_t next = (deeprep::ceil_div(bytes, kAlignment) + 1) * kAlignment;
    if (begin != nullptr) {
      if (reinterpret_cast<uintptr_t>(begin) % kAlignment != 0) throw Error("misaligned scratch");
      ASAN_POISON_MEMORY_REGION(begin + bytes, static_cast<size_t>(next - bytes));
    }
    return next;
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, Arguments... arguments) {
    executor_.launch(kernel, blocks, threads, arguments...);
  }

  template <typename... Parameters, typename... Arguments>
  void launch_next(void (*kernel)(Parameters...), int64_t blocks, int threads,
                   Arguments... arguments) {
    executor_.launch_next(kernel, blocks, threads, arguments...);
  }

  // Odd numbers of bytes, either of which may be the larger.
  static size_t sort_bytes(int64_t num_rows) { return static_cast<size_t>(2 * num_rows + 1); }
  static size_t sum_bytes(int64_t count) { return static_cast<size_t>(3 * count + 2); }

  // Stable, and blind to the bits that it is not told to look at, like a radix sort.
  static void sort(void* temporary, size_t bytes, const uint32_t* keys, uint32_t* sorted_keys,
                   const uint32_t* rows, uint32_t* sorted_rows, int64_t num_rows, int key_bits) {
    scribble(temporary, bytes, sort_bytes(num_rows));
    const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << key_bits) - 1);
    std::vector<int64_t> order(static_cast<size_t>(num_rows));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
    for (int64_t i = 0; i < num_rows; ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_rows[i] = rows[order[i]];
    }
  }

  static void sum(void* temporary, size_t bytes, const int64_t* values, int64_t* sums,
                  int64_t count) {
    scribble(temporary, bytes, sum_bytes(count));
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
      sums[i] = total;
      total += values[i];
    }
  }

 private:
  static void scribble(void* temporary, size_t bytes, size_t needed) {
    if (bytes < needed) throw Error("too little temporary memory");
    std::memset(temporary, 0xa5, bytes);
  }

  Executor executor_;
  int threads_per_block_;
  int64_t max_blocks_;
  Pass pass_;
  int64_t num_multiprocessors_;
};

// A device that writes down the launches instead of running them: as they would be on a GPU of so
// many multiprocessors, CUB's sort and sum being one each.
class LaunchRecorder {
 public:
  struct Record {
    int64_t blocks;
    int64_t threads;
  };

  explicit LaunchRecorder(int64_t multiprocessors) : multiprocessors_(multiprocessors) {}

  const std::vector<Record>& launches() const { return launches_; }

  static int threads_per_block() { return 256; }
  static int most_threads() { return 1024; }

  bool use_chunks(int64_t num_rows, int64_t num_columns, deeprep::FeatureType type,
                  int64_t num_classes) const {
    return deeprep::cuda::use_chunks(num_rows, num_columns, type, num_classes, multiprocessors_);
  }
  int64_t segment_teams(int64_t num_rows, int64_t num_classes, int64_t num_items,
                        int64_t team_size) const {
    return deeprep::cuda::segment_teams(num_rows, num_classes, num_items, team_size,
                                        multiprocessors_);
  }
  int64_t max_blocks(int threads) const { return 8 * multiprocessors_ * (2048 / threads); }
  static int64_t place(const char*, int64_t bytes) { return bytes; }

  template <typename Kernel, typename... Arguments>
  void launch(Kernel, int64_t blocks, int threads, Arguments...) {
    launches_.push_back({blocks, threads});
  }
  template <typename Kernel, typename... Arguments>
  void launch_next(Kernel, int64_t blocks, int threads, Arguments...) {
    launches_.push_back({blocks, threads});
  }

  static size_t sort_bytes(int64_t) { return 0; }
  static size_t sum_bytes(int64_t) { return 0; }
  template <typename... Arguments>
  void sort(Arguments...) {
    launches_.push_back({0, 0});
  }
  template <typename... Arguments>
  void sum(Arguments...) {
    launches_.push_back({0, 0});
  }

 private:
  int64_t multiprocessors_;
  std::vector<Record> launches_;
};

inline int64_t scratch_bytes(HostDevice& device, const deeprep::Features& features,
                             int64_t num_classes) {
  return deeprep::cuda::scratch_bytes(device, features.num_rows, features.num_columns,
                                      features.type, num_classes);
}

}  // namespace simt
