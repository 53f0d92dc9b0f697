// CUDA's vocabulary on the host, and the executor that runs kernels written in it.
//
//     simt::Executor executor(seed);
//     executor.launch(kernel<float>, grid_blocks, block_threads, arguments...);
//     executor.launch_next(kernel<float>, ...);  // may start before the launch ahead has ended
//
// A launch runs every block, one after the other in an order drawn from the seed; the threads of a
// block are fibers of the calling OS thread. A thread runs until it comes to a barrier, a shuffle,
// a vote, an atomic or its end; which thread goes on is drawn from the seed. A process runs one
// launch at a time. What CUDA leaves undefined is an error here, thrown by launch as simt::Error:
//
// - __syncthreads that not all threads of the block reach. A thread that has returned does not
//   count as arrived;
// - a warp operation whose mask lacks the calling lane, names a lane that the block does not have,
//   that has returned or that never comes to the same operation with the same mask; a shuffle from
//   a lane outside the mask;
// - a misaligned load128 or atomic; an index out of a simt::Array;
// - a thread of a kernel queued by launch_next that ends without simt::wait_for_previous_kernel().
//
// The rest is left to sanitizers (tests/simt/CMakeLists.txt says how the executor is built):
//
// - AddressSanitizer sees accesses out of global memory, if that is a heap block of exact size, and
//   out of shared memory, which always is. Shared memory is fresh for each block and filled with
//   0xff, NaN as floating point and -1 as integer;
// - ThreadSanitizer sees races, also where this schedule's result is right. Each thread is a TSan
//   fiber. Launches are ordered, but for what a launch_next does before it waits for the launch
//   ahead; __syncthreads orders a block and __syncwarp the lanes of its mask.
//   Nothing else orders memory: not a switch of fibers, not an atomic (all are relaxed), and not a
//   shuffle or vote, just as CUDA has it. See kFibers in launch.h for its one limit.
//
// Not modelled: y and z of grids and blocks, dynamic shared memory, launches side by side,
// concurrent blocks (a block that waits for another one never ends), memory weaker than sequential
// consistency.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

// ------------------------------------------------------------------------ qualifiers and types

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Those of the thread that runs; the executor changes them as it switches.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

// ------------------------------------------------------------------------ launching

namespace simt {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Executor {
 public:
  explicit Executor(uint64_t seed) : random_state_(seed) {}

  // Every thread gets its own copy of the arguments, converted to the kernel's parameters. After an
  // Error global memory is as the threads left it; the executor can be used again.
  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t grid_blocks, int64_t block_threads,
              Arguments... arguments) {
    const Call<Parameters...> call{kernel, std::tuple<Parameters...>(arguments...)};
    run(grid_blocks, block_threads, false, call.run, &call);
  }

  // A kernel that may start before the launch ahead has ended, see simt.h.
  template <typename... Parameters, typename... Arguments>
  void launch_next(void (*kernel)(Parameters...), int64_t grid_blocks, int64_t block_threads,
                   Arguments... arguments) {
    const Call<Parameters...> call{kernel, std::tuple<Parameters...>(arguments...)};
    run(grid_blocks, block_threads, true, call.run, &call);
  }

 private:
  template <typename... Parameters>
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;

    static void run(const void* call);
  };

  void run(int64_t grid_blocks, int64_t block_threads, bool early, void (*call)(const void*),
           const void* argument);

  uint64_t random_state_;
};

// ------------------------------------------------------------------------ behind the vocabulary

namespace detail {

enum class Operation {
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kMatchAny,
  kBallot,
  kAny,
  kAll,
  kSync
};

// What happens between these is nobody's access to memory, for ThreadSanitizer.
void hide_accesses();
void show_accesses();

void wait_for_previous_launch();

void synchronize_block();

// Waits for all lanes of the mask. Shuffles: the bits of the lane that `lane` (an index, a distance
// or a mask) chooses among `width` lanes. Matches: the lanes of the mask whose bits are this one's.
// Votes: the lanes of the mask whose bits are not 0.
uint64_t synchronize_warp(Operation operation, uint32_t mask, uint64_t bits, int lane, int width);

// Lets another thread of the block go first.
void yield();

// The running block's memory of one declaration.
void* shared_memory(const void* declaration, size_t size, size_t alignment);

void expect_aligned(const void* address, size_t alignment, const char* what);

[[noreturn]] void fail_index(int index, int size);
inline void expect_index(int index, int size) {
  if (index < 0 || index >= size) fail_index(index, size);
}

template <typename T>
T& shared(const void* declaration) {
  static_assert(std::is_trivial<T>::value, "shared memory has no constructor and no destructor");
  return *static_cast<T*>(shared_memory(declaration, sizeof(T), alignof(T)));
}

template <typename T>
T shuffle(Operation operation, unsigned mask, T value, int lane, int width) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles numbers of 32 and 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = synchronize_warp(operation, mask, bits, lane, width);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T, typename... Types>
constexpr bool is_one_of = (std::is_same<T, Types>::value || ...);

// A parameter that takes no part in the deduction of T, so that it is converted as in CUDA.
template <typename T>
struct Given {
  using type = T;
};
template <typename T>
using given = typename Given<T>::type;

template <typename T, typename Update>
T update_atomically(T* address, const Update& update) {
  static_assert(is_one_of<T, int, unsigned, unsigned long long, float, double>,
                "CUDA has no such atomic");
  expect_aligned(address, sizeof(T), "atomic");
  yield();
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  T updated = update(old);
  while (!__atomic_compare_exchange(address, &old, &updated, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
    updated = update(old);
  }
  return old;
}

}  // namespace detail

// The arguments come with the launch, whatever it waits for.
template <typename... Parameters>
void Executor::Call<Parameters...>::run(const void* call) {
  detail::hide_accesses();
  const Call own = *static_cast<const Call*>(call);
  detail::show_accesses();
  std::apply(own.kernel, own.parameters);
}

}  // namespace simt

// ------------------------------------------------------------------------ the vocabulary

// The declaration is known by the address of a variable of its own, one per template instance.
#define SIMT_SHARED(Type, name)             \
  static const char name##_declaration = 0; \
  Type& name = ::simt::detail::shared<Type>(&name##_declaration)

inline void __syncthreads() { simt::detail::synchronize_block(); }

inline void __syncwarp(unsigned mask = ~0u) {
  simt::detail::synchronize_warp(simt::detail::Operation::kSync, mask, 0, 0, warpSize);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize) {
  return simt::detail::shuffle(simt::detail::Operation::kShuffle, mask, value, lane, width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return simt::detail::shuffle(simt::detail::Operation::kShuffleUp, mask, value,
                               static_cast<int>(delta), width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return simt::detail::shuffle(simt::detail::Operation::kShuffleDown, mask, value,
                               static_cast<int>(delta), width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize) {
  return simt::detail::shuffle(simt::detail::Operation::kShuffleXor, mask, value, lane_mask, width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(simt::detail::synchronize_warp(simt::detail::Operation::kBallot,
                                                              mask, predicate != 0, 0, warpSize));
}
inline int __any_sync(unsigned mask, int predicate) {
  return simt::detail::synchronize_warp(simt::detail::Operation::kAny, mask, predicate != 0, 0,
                                        warpSize) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return simt::detail::synchronize_warp(simt::detail::Operation::kAll, mask, predicate != 0, 0,
                                        warpSize) == mask;
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA matches numbers of 32 and 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return static_cast<unsigned>(
      simt::detail::synchronize_warp(simt::detail::Operation::kMatchAny, mask, bits, 0, warpSize));
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <typename T>
T atomicAdd(T* address, simt::detail::given<T> value) {
  return simt::detail::update_atomically(address, [&](T old) { return old + value; });
}
template <typename T>
T atomicMin(T* address, simt::detail::given<T> value) {
  static_assert(std::is_integral<T>::value, "CUDA has no such atomic");
  return simt::detail::update_atomically(address, [&](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicMax(T* address, simt::detail::given<T> value) {
  static_assert(std::is_integral<T>::value, "CUDA has no such atomic");
  return simt::detail::update_atomically(address, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicExch(T* address, simt::detail::given<T> value) {
  static_assert(!std::is_same<T, double>::value, "CUDA has no such atomic");
  return simt::detail::update_atomically(address, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, simt::detail::given<T> expected, simt::detail::given<T> value) {
  static_assert(std::is_integral<T>::value, "CUDA has no such atomic");
  return simt::detail::update_atomically(address,
                                         [&](T old) { return old == expected ? value : old; });
}
