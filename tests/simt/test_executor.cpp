// The executor's own test: correct kernels give the same bits under every seed, and kernels with
// one planted bug each are there for tests/simt/test_executor.py to see caught.
//
//     simt_executor_test                all correct kernels, the repaired twins of the bugs
//     included simt_executor_test --bug <name>   one kernel with its bug, under a few seeds
//
// Exit status 1 and one line on stderr if a result is wrong or the executor refuses the kernel;
// what a sanitizer finds ends the process its own way.
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/simt.h"
#include "planted_bugs.h"

namespace {

using simt::Executor;

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

// A vector made in one go: its heap block is of exact size.
template <typename T>
std::vector<T> iota(int64_t size) {
  std::vector<T> values(size);
  std::iota(values.begin(), values.end(), T{});
  return values;
}

__device__ int64_t global_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// ------------------------------------------------------------------------ shared memory

template <typename T>
__global__ void __launch_bounds__(256) sum_by_halves(const T* __restrict__ values, T* sums) {
  using Partial = simt::Array<T, 256>;
  SIMT_SHARED(Partial, partial);
  partial[threadIdx.x] = values[global_index()];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

template <typename T>
void check_block_sum(Executor& executor) {
  constexpr int64_t kBlocks = 5;
  const std::vector<T> values = iota<T>(kBlocks * 256);
  std::vector<T> sums(kBlocks);
  executor.launch(sum_by_halves<T>, kBlocks, 256, values.data(), sums.data());
  for (int64_t block = 0; block < kBlocks; ++block) {
    expect(sums[block] == static_cast<T>(256 * 256 * block + 255 * 128), "sum of a block");
  }
}

// A 32 x 32 tile, read by rows in 128-bit loads and written by columns.
__global__ void transpose(const float* in, float* out) {
  using Tile = simt::Array<simt::Array<float, 33>, 32>;
  SIMT_SHARED(Tile, tile);
  const int row = static_cast<int>(threadIdx.x) / 8;
  const int column = static_cast<int>(threadIdx.x) % 8 * 4;
  const uint4 loaded = simt::load128(in + row * 32 + column);
  tile[row][column] = simt::bits_to_float(loaded.x);
  tile[row][column + 1] = simt::bits_to_float(loaded.y);
  tile[row][column + 2] = simt::bits_to_float(loaded.z);
  tile[row][column + 3] = simt::bits_to_float(loaded.w);
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[row * 32 + column + i] = tile[column + i][row];
}

void check_transpose(Executor& executor) {
  const std::vector<float> in = iota<float>(1024);
  std::vector<float> out(1024);
  executor.launch(transpose, 1, 256, in.data(), out.data());
  for (int64_t i = 0; i < 1024; ++i) expect(out[i] == in[i % 32 * 32 + i / 32], "transpose");
}

// Two declarations of one type are two memories, and every block finds both untouched.
__global__ void look_at_fresh_memory(unsigned long long* found) {
  SIMT_SHARED(unsigned long long, first);
  SIMT_SHARED(unsigned long long, second);
  if (threadIdx.x == 0) found[2 * blockIdx.x] = first;
  if (threadIdx.x == 33) found[2 * blockIdx.x + 1] = second;
  __syncthreads();
  if (threadIdx.x == 0) first = 1;
  if (threadIdx.x == 33) second = 2;
  __syncthreads();
  if (first != 1 || second != 2) found[2 * blockIdx.x] = 0;
}

void check_fresh_memory(Executor& executor) {
  std::vector<unsigned long long> found(40);
  executor.launch(look_at_fresh_memory, 20, 64, found.data());
  for (const auto each : found) expect(each == ~0ull, "shared memory is not fresh");
}

// ------------------------------------------------------------------------ warps

// Sums by all four shuffles, in 32 and 64 bits, over all of a warp and over eighths of it; the
// block's last warp is a half.
__global__ void shuffle_sums(double* sums) {
  const unsigned lane = threadIdx.x % warpSize;
  const unsigned mask = blockDim.x - threadIdx.x + lane < 32 ? 0xffffu : ~0u;
  const int width = mask == ~0u ? 32 : 16;

  double by_xor = threadIdx.x;
  for (int step = width / 2; step > 0; step /= 2) by_xor += __shfl_xor_sync(mask, by_xor, step);
  float by_down = static_cast<float>(lane % 4);
  for (unsigned step = 2; step > 0; step /= 2) {
    const float other = __shfl_down_sync(mask, by_down, step, 4);
    if (lane % 4 + step < 4) by_down += other;
  }
  long long by_up = lane;
  for (unsigned step = 1; step < 32; step *= 2) {
    const long long other = __shfl_up_sync(mask, by_up, step, width);
    if (lane >= step) by_up += other;
  }
  const int of_lane_1 = __shfl_sync(mask, static_cast<int>(lane), 1, 4);
  double* own = sums + 4 * threadIdx.x;
  own[0] = by_xor;
  own[1] = __shfl_sync(mask, by_down, 0, 4);
  own[2] = static_cast<double>(by_up);
  own[3] = of_lane_1;
}

void check_shuffles(Executor& executor) {
  std::vector<double> sums(4 * 80);
  executor.launch(shuffle_sums, 1, 80, sums.data());
  for (int thread = 0; thread < 80; ++thread) {
    const int lane = thread % 32;
    const int first = thread - lane;
    const int width = first == 64 ? 16 : 32;
    const double* own = &sums[4 * thread];
    expect(own[0] == width * first + width * (width - 1) / 2, "__shfl_xor_sync");
    expect(own[1] == 6, "__shfl_down_sync");
    expect(own[2] == lane * (lane + 1) / 2, "__shfl_up_sync");
    expect(own[3] == lane / 4 * 4 + 1, "__shfl_sync");
  }
}

// Both halves of a warp vote on their own, in either order.
__global__ void vote(unsigned* votes) {
  const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  unsigned* own = votes + 4 * threadIdx.x;
  own[0] = __ballot_sync(mask, threadIdx.x % 3 == 0);
  own[1] = static_cast<unsigned>(__any_sync(mask, threadIdx.x == 20));
  own[2] = static_cast<unsigned>(__all_sync(mask, threadIdx.x < 16));
  own[3] = __ballot_sync(~0u, 2);
}

void check_votes(Executor& executor) {
  std::vector<unsigned> votes(4 * 32);
  executor.launch(vote, 1, 32, votes.data());
  for (unsigned thread = 0; thread < 32; ++thread) {
    const unsigned* own = &votes[4 * thread];
    expect(own[0] == (thread < 16 ? 0x9249u : 0x49240000u), "__ballot_sync");
    expect(own[1] == (thread < 16 ? 0u : 1u), "__any_sync");
    expect(own[2] == (thread < 16 ? 1u : 0u), "__all_sync");
    expect(own[3] == ~0u, "__ballot_sync of a whole warp");
  }
}

// Both halves of a warp match on their own, by 32 and by 64 bits that differ in the upper half
// alone; the block's last warp is a half.
__global__ void match(unsigned* matches) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
  unsigned* own = matches + 3 * threadIdx.x;
  own[0] = __match_any_sync(mask, lane % 3);
  own[1] = __match_any_sync(mask, static_cast<unsigned long long>(lane % 5) << 40);
  own[2] = __match_any_sync(1u << lane, 7);
}

void check_matches(Executor& executor) {
  constexpr int kThreads = 80;
  std::vector<unsigned> matches(3 * kThreads);
  executor.launch(match, 1, kThreads, matches.data());
  const auto equal_lanes = [](int lane, int period) {
    unsigned equal = 0;
    for (int other = lane / 16 * 16; other < lane / 16 * 16 + 16; ++other) {
      if (other % period == lane % period) equal |= 1u << other;
    }
    return equal;
  };
  for (int thread = 0; thread < kThreads; ++thread) {
    const unsigned* own = &matches[3 * thread];
    const int lane = thread % 32;
    expect(own[0] == equal_lanes(lane, 3), "__match_any_sync of 32 bits");
    expect(own[1] == equal_lanes(lane, 5), "__match_any_sync of 64 bits");
    expect(own[2] == 1u << lane, "__match_any_sync of one lane");
  }
  expect(__popc(0xf00f0001u) == 9 && __popc(0) == 0, "__popc");
  expect(__ffs(0) == 0 && __ffs(1) == 1 && __ffs(0x60) == 6 && __ffs(INT32_MIN) == 32, "__ffs");
}

// ------------------------------------------------------------------------ atomics

struct Counters {
  unsigned long long least;
  unsigned long long most;
  int sum;
  float float_sum;
  double double_sum;
  unsigned claimed_by_cas;
  unsigned exchanged;
  int seen;
};

__global__ void count(Counters* counters) {
  const int index = static_cast<int>(global_index());
  atomicMin(&counters->least, index);
  atomicMax(&counters->most, index);
  atomicAdd(&counters->sum, index);
  atomicAdd(&counters->float_sum, 1.0f);
  atomicAdd(&counters->double_sum, 0.5);
  if (atomicCAS(&counters->claimed_by_cas, 0u, 1u) == 0) atomicAdd(&counters->seen, 1);
  if (atomicExch(&counters->exchanged, 1u) == 0) atomicAdd(&counters->seen, 1);
}

void check_atomics(Executor& executor) {
  Counters counters{~0ull, 0, 0, 0, 0, 0, 0, 0};
  executor.launch(count, 4, 48, &counters);
  expect(counters.least == 0 && counters.most == 191, "atomicMin and atomicMax");
  expect(counters.sum == 191 * 96 && counters.float_sum == 192 && counters.double_sum == 96,
         "atomicAdd");
  expect(counters.seen == 2, "atomicCAS and atomicExch");
}

// ------------------------------------------------------------------------ the executor

// After a launch that failed in the middle of a block the next one starts afresh.
void check_recovery(Executor& executor) {
  std::vector<float> out(64);
  bool failed = false;
  try {
    executor.launch(bugs::divergent_barrier<true>, 1, 64, out.data());
  } catch (const simt::Error&) {
    failed = true;
  }
  expect(failed, "no error where one is planted");
  check_block_sum<float>(executor);
}

void check_launch_limits(Executor& executor) {
  std::vector<float> out(1);
  for (const auto& [grid, block] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {int64_t{1} << 31, 1}, {1, 0}, {1, 1025}}) {
    bool refused = false;
    try {
      executor.launch(bugs::divergent_barrier<false>, grid, block, out.data());
    } catch (const simt::Error&) {
      refused = true;
    }
    expect(refused, "a launch that CUDA refuses");
  }
}

__global__ void full_block(int* out) {
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(threadIdx.x);
}

void check_full_block(Executor& executor) {
  std::vector<int> out(1024);
  executor.launch(full_block, 1, 1024, out.data());
  expect(out == iota<int>(1024), "a block of 1024 threads");
}

void check_half() {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const int exponent = bits >> 10 & 31;
    const int mantissa = bits & 1023;
    const double size =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    const float found = simt::half_to_float(static_cast<uint16_t>(bits));
    if (exponent == 31) {
      expect(mantissa == 0 ? std::isinf(found) : std::isnan(found), "half_to_float: not finite");
    } else {
      expect(found == (bits & 0x8000 ? -size : size), "half_to_float");
    }
    expect(std::signbit(found) == (bits >= 0x8000), "half_to_float: sign");
  }
}

// ------------------------------------------------------------------------ running

void check_all(uint64_t seed) {
  Executor executor(seed);
  check_block_sum<float>(executor);
  check_block_sum<double>(executor);
  check_transpose(executor);
  check_fresh_memory(executor);
  check_shuffles(executor);
  check_votes(executor);
  check_matches(executor);
  check_atomics(executor);
  for (const bugs::Bug& each : bugs::kBugs) {
    expect(each.run(executor, false), std::string("the repaired twin of ") + each.name);
  }
}

void run_correct_kernels(int num_seeds) {
  check_half();
  for (int seed = 0; seed < num_seeds; ++seed) check_all(static_cast<uint64_t>(seed));
  Executor executor(0);
  check_launch_limits(executor);
  for (int failures = 0; failures < 3; ++failures) check_recovery(executor);
  check_full_block(executor);
}

void run_bug(const std::string& name) {
  constexpr int kSeeds = 4;
  for (const bugs::Bug& each : bugs::kBugs) {
    if (name != each.name) continue;
    for (int seed = 0; seed < kSeeds; ++seed) {
      Executor executor(static_cast<uint64_t>(seed));
      expect(each.run(executor, true), "wrong result with seed " + std::to_string(seed));
    }
    return;
  }
  throw std::runtime_error("no bug of this name: " + name);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() == 2 && arguments[0] == "--bug") {
      run_bug(arguments[1]);
      std::puts("right results");
    } else if (arguments.size() == 2 && arguments[0] == "--seeds") {
      run_correct_kernels(std::stoi(arguments[1]));
      std::puts("all kernels gave the expected bits");
    } else {
      throw std::runtime_error("expected --seeds <n> or --bug <name>");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FAILED: %s\n", error.what());
    return 1;
  }
  return 0;
}
