// One kernel per kind of mistake that the executor or a sanitizer must catch. `kBug` = false is the
// repaired twin, which differs in nothing else.
#pragma once

#include <vector>

#include "cuda/simt.h"

namespace bugs {

using Floats = simt::Array<float, 64>;

// ------------------------------------------------------------------------ races

// A thread of the other warp reads what this one wrote.
template <bool kBug>
__global__ void missing_barrier(float* out) {
  SIMT_SHARED(Floats, values);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (!kBug) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 32) % 64];
}

// The same in global memory that holds the right values already: no schedule gives a wrong result.
template <bool kBug>
__global__ void silent_missing_barrier(float* out, float* values) {
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (!kBug) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 32) % 64];
}

// A shuffle makes lanes wait for each other but does not order their memory.
template <bool kBug>
__global__ void shuffle_as_barrier(float* out) {
  SIMT_SHARED(Floats, values);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  const float shuffled = __shfl_sync(~0u, 0.0f, 0);
  if constexpr (!kBug) __syncwarp();
  out[threadIdx.x] = shuffled + values[threadIdx.x ^ 1];
}

// A warp's barrier orders that warp, not the block.
template <bool kBug>
__global__ void warp_barrier_for_block(float* out) {
  SIMT_SHARED(Floats, values);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (kBug) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = values[(threadIdx.x + 32) % 64];
}

// Fast threads come round and write again while slow ones still read: only the second barrier of a
// loop's body keeps them apart.
template <bool kBug>
__global__ void missing_second_barrier(float* out) {
  SIMT_SHARED(float, value);
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) value = static_cast<float>(round);
    __syncthreads();
    sum += value;
    if constexpr (!kBug) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

template <bool kBug>
__global__ void two_blocks_one_word(float* out) {
  if (kBug || blockIdx.x == 0) out[threadIdx.x] = 1;
}

// Lanes number the equal ones among them, twice; the first of each adds them to a counter that all
// have read. In the second round another lane is the first.
template <bool kFirst, bool kSecond>
__device__ float number_equal_lanes() {
  using Counters = simt::Array<int, 4>;
  SIMT_SHARED(Counters, counters);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < 2) counters[2 * warp + lane] = 0;
  __syncwarp();
  int number = 0;
  for (int round = 0; round < 2; ++round) {
    const int own = 2 * warp + (lane + round) % 2;
    const unsigned equal = __match_any_sync(~0u, own);
    const int before = __popc(equal & ((1u << lane) - 1));
    const int seen = counters[own];
    number = seen + before;
    if constexpr (kFirst) __syncwarp();
    if (before == 0) counters[own] = seen + __popc(equal);
    if constexpr (kSecond) __syncwarp();
  }
  return static_cast<float>(number);
}

// The first of the equal lanes writes while others still read.
template <bool kBug>
__global__ void counter_written_too_early(float* out) {
  out[threadIdx.x] = number_equal_lanes<!kBug, true>();
}

// A match makes lanes wait for each other but does not order their memory.
template <bool kBug>
__global__ void match_as_barrier(float* out) {
  out[threadIdx.x] = number_equal_lanes<true, !kBug>();
}

// A kernel reads what the previous one writes before it has waited for it.
template <bool kBug>
__global__ void read_before_waiting(float* out, const float* values) {
  if constexpr (!kBug) simt::wait_for_previous_kernel();
  const float value = values[(threadIdx.x + 32) % 64];
  if constexpr (kBug) simt::wait_for_previous_kernel();
  out[threadIdx.x] = value;
}

inline __global__ void write_thread_numbers(float* values) {
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
}

// ------------------------------------------------------------------------ memory

template <bool kBug>
__global__ void shared_out_of_bounds(float* out) {
  SIMT_SHARED(Floats, values);
  float* first = values.values;
  first[threadIdx.x + (kBug ? 1 : 0)] = 1;
  __syncthreads();
  out[threadIdx.x] = kBug ? 1 : first[threadIdx.x];
}

// Inside the shared block, where AddressSanitizer sees nothing.
struct TwoArrays {
  Floats first;
  Floats second;
};
template <bool kBug>
__global__ void index_out_of_array(float* out) {
  SIMT_SHARED(TwoArrays, arrays);
  const int thread = static_cast<int>(threadIdx.x);
  arrays.first[kBug ? thread + 1 : thread] = 1;
  __syncthreads();
  out[threadIdx.x] = kBug ? 1 : arrays.first[thread];
}

template <bool kBug>
__global__ void global_out_of_bounds(float* out) {
  out[threadIdx.x + (kBug ? 1 : 0)] = 1;
}

template <bool kBug>
__global__ void uninitialised_shared(float* out) {
  SIMT_SHARED(Floats, sums);
  if constexpr (!kBug) sums[threadIdx.x] = 0;
  sums[threadIdx.x] += 1;
  out[threadIdx.x] = sums[threadIdx.x];
}

template <bool kBug>
__global__ void misaligned_load(const float* values, float* out) {
  const uint4 loaded = simt::load128(values + 4 * threadIdx.x + (kBug ? 1 : 0));
  out[threadIdx.x] = simt::bits_to_float(loaded.x);
}

// ------------------------------------------------------------------------ divergence

template <bool kBug>
__global__ void divergent_barrier(float* out) {
  if (kBug && threadIdx.x >= 32) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

// Half of a warp waits at a barrier, the other half at a shuffle of the whole warp.
template <bool kBug>
__global__ void barrier_against_shuffle(float* out) {
  float value = 1;
  if (kBug && threadIdx.x % 32 < 16) {
    __syncthreads();
    value = __shfl_sync(~0u, value, 0);
  } else {
    value = __shfl_sync(~0u, value, 0);
    __syncthreads();
  }
  out[threadIdx.x] = value;
}

template <bool kBug>
__global__ void returned_lane(float* out) {
  if (kBug && threadIdx.x % 32 == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

template <bool kBug>
__global__ void source_outside_mask(float* out) {
  out[threadIdx.x] = 1;
  if (threadIdx.x % 32 < 8) out[threadIdx.x] = __shfl_down_sync(0xffu, 1.0f, 4, kBug ? 32 : 8);
}

template <bool kBug>
__global__ void mask_disagreement(float* out) {
  const unsigned mask = kBug && threadIdx.x % 32 == 7 ? 0x7fffffffu : ~0u;
  out[threadIdx.x] = __shfl_sync(mask, 1.0f, 0);
}

template <bool kBug>
__global__ void operation_disagreement(float* out) {
  const bool other = kBug && threadIdx.x % 32 == 7;
  out[threadIdx.x] = other ? __shfl_xor_sync(~0u, 1.0f, 1) : __shfl_sync(~0u, 1.0f, 0);
}

template <bool kBug>
__global__ void caller_not_in_mask(float* out) {
  const unsigned mask = kBug ? 1u : 1u << threadIdx.x % 32;
  out[threadIdx.x] = __ballot_sync(mask, 1) == mask ? 1 : 0;
}

// The second warp of a block of 48 threads has no lanes 16 to 31.
template <bool kBug>
__global__ void mask_beyond_block(float* out) {
  const unsigned mask = kBug || threadIdx.x < 32 ? ~0u : 0xffffu;
  out[threadIdx.x] = __all_sync(mask, 1) != 0 ? 1 : 0;
}

// Nothing would order this kernel, or those after it, and the previous one.
template <bool kBug>
__global__ void never_waits(float* out) {
  if (!kBug || threadIdx.x < 32) simt::wait_for_previous_kernel();
  out[threadIdx.x] = 1;
}

// ------------------------------------------------------------------------ running them

// Whether out[i] is expected(i) for all threads of a block.
template <typename Expected>
bool all_equal(const std::vector<float>& out, const Expected& expected) {
  bool equal = true;
  for (int i = 0; i < static_cast<int>(out.size()); ++i) equal = equal && out[i] == expected(i);
  return equal;
}

inline float one(int) { return 1; }
inline float three(int) { return 3; }
inline float of_other_warp(int i) { return static_cast<float>((i + 32) % 64); }
inline float of_neighbour(int i) { return static_cast<float>(i ^ 1); }
inline float of_second_round(int i) { return static_cast<float>(16 + i % 32 / 2); }

using Kernel = void (*)(float*);

template <Kernel kBuggy, Kernel kRepaired, float (*expected)(int), int kBlocks = 1,
          int kThreads = 64>
bool run(simt::Executor& executor, bool bug) {
  std::vector<float> out(kThreads, -1.0f);
  executor.launch(bug ? kBuggy : kRepaired, kBlocks, kThreads, out.data());
  return all_equal(out, expected);
}

inline bool run_silent(simt::Executor& executor, bool bug) {
  std::vector<float> out(64);
  std::vector<float> values(64);
  for (int i = 0; i < 64; ++i) values[i] = static_cast<float>(i);
  executor.launch(bug ? silent_missing_barrier<true> : silent_missing_barrier<false>, 1, 64,
                  out.data(), values.data());
  return all_equal(out, of_other_warp);
}

inline bool run_early_read(simt::Executor& executor, bool bug) {
  std::vector<float> out(64);
  std::vector<float> values(64);
  executor.launch(write_thread_numbers, 1, 64, values.data());
  executor.launch_next(bug ? read_before_waiting<true> : read_before_waiting<false>, 1, 64,
                       out.data(), values.data());
  return all_equal(out, of_other_warp);
}

inline bool run_never_waits(simt::Executor& executor, bool bug) {
  std::vector<float> out(64, -1.0f);
  executor.launch_next(bug ? never_waits<true> : never_waits<false>, 1, 64, out.data());
  return all_equal(out, one);
}

inline bool run_load(simt::Executor& executor, bool bug) {
  std::vector<float> out(4);
  const std::vector<float> values(20, 1.0f);
  executor.launch(bug ? misaligned_load<true> : misaligned_load<false>, 1, 4, values.data(),
                  out.data());
  return all_equal(out, one);
}

struct Bug {
  const char* name;
  bool (*run)(simt::Executor&, bool bug);  // whether the result is right
};

#define PLANTED(name, ...) {#name, run<name<true>, name<false>, __VA_ARGS__>}

constexpr Bug kBugs[] = {
    PLANTED(missing_barrier, of_other_warp),
    {"silent_missing_barrier", run_silent},
    PLANTED(shuffle_as_barrier, of_neighbour),
    PLANTED(warp_barrier_for_block, of_other_warp),
    PLANTED(missing_second_barrier, three),
    PLANTED(two_blocks_one_word, one, 2),
    PLANTED(counter_written_too_early, of_second_round),
    PLANTED(match_as_barrier, of_second_round),
    {"read_before_waiting", run_early_read},
    PLANTED(shared_out_of_bounds, one),
    PLANTED(index_out_of_array, one),
    PLANTED(global_out_of_bounds, one),
    PLANTED(uninitialised_shared, one),
    {"misaligned_load", run_load},
    PLANTED(divergent_barrier, one),
    PLANTED(barrier_against_shuffle, one),
    PLANTED(returned_lane, one),
    PLANTED(source_outside_mask, one),
    PLANTED(mask_disagreement, one),
    PLANTED(operation_disagreement, one),
    PLANTED(caller_not_in_mask, one),
    PLANTED(mask_beyond_block, one, 1, 48),
    {"never_waits", run_never_waits},
};

#undef PLANTED

}  // namespace bugs
