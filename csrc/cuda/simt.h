// The only header that kernels include beside the portable ones: CUDA under nvcc, and under a plain
// C++ compiler the same vocabulary on the host, executed by the "executor.h" found on the include
// path (the tests have one). So the source that runs on a GPU is the source that is sanitised.
//
// Shared memory is declared by SIMT_SHARED(Type, name). Type is trivial, and an array is written as
// simt::Array; a type with a comma needs an alias, because a macro would cut it in two:
//
//     using Sums = simt::Array<float, 32>;
//     SIMT_SHARED(Sums, sums);
//
// A kernel may be launched before the one ahead of it in the stream has ended (programmatic
// dependent launch, from compute capability 9.0 on). Every thread of every such kernel begins with
// simt::wait_for_previous_kernel() and touches no global memory before. As none can end without it,
// a kernel that comes after the wait comes after all that were launched before it.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SIMT_SHARED(Type, name) __shared__ Type name
namespace simt::detail {
__host__ __device__ __forceinline__ void expect_index(int, int) {}
}  // namespace simt::detail
#else
#include "executor.h"
#endif

namespace simt {

// An array that knows its size: on the host, an index out of it is an error even where the memory
// behind belongs to the same struct.
template <typename T, int N>
struct Array {
  T values[N];

  __host__ __device__ T& operator[](int i) {
    detail::expect_index(i, N);
    return values[i];
  }
  __host__ __device__ const T& operator[](int i) const {
    detail::expect_index(i, N);
    return values[i];
  }
};

#ifdef __CUDACC__

// Waits until the kernel ahead has ended and its writes are seen, then lets the next one's blocks
// take up the multiprocessors that this one's leave, there to wait in their turn.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// 16 or 8 bytes of read-only data from an address aligned to them: one ld.global.nc.v4 or v2.
__device__ __forceinline__ uint4 load128(const void* address) {
  return __ldg(static_cast<const uint4*>(address));
}
__device__ __forceinline__ uint2 load64(const void* address) {
  return __ldg(static_cast<const uint2*>(address));
}
// Brings what lies at an address into the second-level cache.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
// a * b + c, rounded once.
__device__ __forceinline__ float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ __forceinline__ float half_to_float(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
// The float of these bits; a bfloat16 is widened by shifting its bits left by 16.
__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }

#else

inline void wait_for_previous_kernel() { detail::wait_for_previous_launch(); }

inline uint4 load128(const void* address) {
  detail::expect_aligned(address, 16, "load128");
  uint4 loaded;
  std::memcpy(&loaded, address, sizeof loaded);
  return loaded;
}
inline uint2 load64(const void* address) {
  detail::expect_aligned(address, 8, "load64");
  uint2 loaded;
  std::memcpy(&loaded, address, sizeof loaded);
  return loaded;
}
inline void prefetch(const void*) {}
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline double fma(double a, double b, double c) { return std::fma(a, b, c); }
inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
// Subnormals are an integer times 2^-24; the rest moves its exponent from bias 15 to 127, Inf and
// NaN to all ones.
inline float half_to_float(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  const uint32_t rebias = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const float size = magnitude < 0x0400u ? subnormal : bits_to_float((magnitude << 13) + rebias);
  return (bits & 0x8000u) != 0 ? -size : size;
}

#endif

}  // namespace simt
