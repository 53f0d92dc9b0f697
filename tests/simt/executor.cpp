// The schedule of a launch's blocks and threads.
//
// Threads hand over to each other directly: whoever has to wait draws the next of those that are
// ready. If none is ready before all have returned, no thread can ever go on, and the launch fails.
#include "executor.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>

#include "launch.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace simt {

namespace detail {

Launch active;

namespace {

// SplitMix64: Steele, Lea, Flood (2014).
uint64_t draw(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// A number below `bound` made of the upper half of a drawn one.
unsigned below(unsigned bound, uint64_t drawn) {
  return static_cast<unsigned>(((drawn >> 32) * bound) >> 32);
}

// Uniform choices alone keep all threads nearly level; eager ones let a few run far ahead.
unsigned take_ready() {
  const uint64_t drawn = draw(active.random_state);
  const unsigned last = active.num_ready - 1;
  const unsigned chosen = drawn % 16 < active.eagerness ? last : below(active.num_ready, drawn);
  const unsigned thread = active.ready[chosen];
  active.ready[chosen] = active.ready[last];
  active.num_ready = last;
  return thread;
}

}  // namespace

// ------------------------------------------------------------------------ threads

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(active.failure, sizeof active.failure, format, arguments);
  va_end(arguments);
  if (!active.running) throw Error(active.failure);
  switch_fiber(*active.threads[active.current].fiber, active.os_thread, Leaving::kForGood);
  __builtin_unreachable();
}

void make_ready(unsigned thread) {
  active.threads[thread].state = State::kReady;
  active.ready[active.num_ready++] = thread;
}

void run_next(Leaving leaving) {
  if (!active.running) throw Error("a barrier, warp operation or atomic outside a kernel");
  if (active.num_ready == 0) fail_stuck();
  const unsigned left = active.current;
  const unsigned next = take_ready();
  if (next == left && leaving == Leaving::kForNow) return;
  active.current = next;
  threadIdx.x = next;
  switch_fiber(*active.threads[left].fiber, *active.threads[next].fiber, leaving);
}

void synchronize_block() {
  active.threads[active.current].state = State::kAtBarrier;
  if (++active.num_at_barrier == active.num_threads) {
    const auto visit_block = [](const auto& visit) {
      for (unsigned i = 0; i < active.num_threads; ++i) visit(i);
    };
    active.num_at_barrier = 0;
    order_memory(0, visit_block);
    visit_block(make_ready);
  }
  run_next(Leaving::kForNow);
}

void yield() {
  make_ready(active.current);
  run_next(Leaving::kForNow);
}

void wait_for_previous_launch() {
  Thread& self = active.threads[active.current];
  self.has_waited = true;
  acquire_as(self.fiber->race_context, &active.launch_token);
}

void* shared_memory(const void* declaration, size_t size, size_t alignment) {
  for (const SharedMemory& each : active.shared) {
    if (each.declaration == declaration) return each.data;
  }
  const UnseenMemory unseen;
  const std::align_val_t aligned{alignment};
  void* data = ::operator new(size, aligned);
  std::memset(data, 0xff, size);
  active.shared.push_back({declaration, data, aligned});
  return data;
}

void expect_aligned(const void* address, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return;
  fail("block %u, thread %u: %s: misaligned address %p, expected a multiple of %zu", blockIdx.x,
       active.current, what, address, alignment);
}

void fail_index(int index, int size) {
  fail("block %u, thread %u: index %d of an array of %d", blockIdx.x, active.current, index, size);
}

// ------------------------------------------------------------------------ blocks

namespace {

void run_thread() {
  entered(active.os_thread);
  active.call(active.argument);
  Thread& self = active.threads[active.current];
  if (active.early && !self.has_waited) {
    fail("block %u, thread %u: ends without waiting for the previous kernel", blockIdx.x,
         active.current);
  }
  self.state = State::kReturned;
  if (++active.num_returned < active.num_threads) run_next(Leaving::kForGood);
  switch_fiber(*self.fiber, active.os_thread, Leaving::kForGood);
}

void assign_fibers(unsigned nth_block) {
  const unsigned num_sets =
      kDetectsRaces ? std::clamp(kFibers / active.num_threads, kMinFiberSets, kMaxFiberSets) : 1;
  active.fiber_set = nth_block % num_sets;
  const size_t first = size_t{active.fiber_set} * active.num_threads;
  while (active.fibers.size() < first + active.num_threads) {
    active.fibers.emplace_back();
    allocate_stack(active.fibers.back());
  }
  for (unsigned i = 0; i < active.num_threads; ++i) {
    Fiber& fiber = active.fibers[first + i];
    if (fiber.race_context == nullptr) fiber.race_context = create_race_context();
    prepare(fiber, run_thread);
    if (!active.early) acquire_as(fiber.race_context, &active.launch_token);
    active.threads[i].fiber = &fiber;
    active.threads[i].has_waited = false;
  }
}

void run_block(unsigned nth_block) {
  assign_fibers(nth_block);
  active.num_ready = 0;
  active.num_at_barrier = 0;
  active.num_returned = 0;
  for (unsigned i = 0; i < active.num_threads; ++i) make_ready(i);
  active.current = take_ready();
  threadIdx.x = active.current;
  active.running = true;
  switch_fiber(active.os_thread, *active.threads[active.current].fiber, Leaving::kForNow);
  active.running = false;

  const UnseenMemory unseen;
  for (const SharedMemory& each : active.shared) ::operator delete(each.data, each.alignment);
  active.shared.clear();
}

// Blocks one after the other in random order, until one fails.
void run_blocks(unsigned num_blocks) {
  std::vector<unsigned> order(num_blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned i = num_blocks; i > 1; --i) {
    std::swap(order[i - 1], order[below(i, draw(active.random_state))]);
  }
  for (unsigned i = 0; i < num_blocks && active.failure[0] == '\0'; ++i) {
    blockIdx.x = order[i];
    run_block(i);
  }
}

}  // namespace

}  // namespace detail

// ------------------------------------------------------------------------ launches

void Executor::run(int64_t grid_blocks, int64_t block_threads, bool early,
                   void (*call)(const void*), const void* argument) {
  using namespace detail;
  if (active.running) throw Error("a launch inside a kernel");
  if (grid_blocks < 1 || grid_blocks > INT32_MAX) {
    throw Error("launch of " + std::to_string(grid_blocks) + " blocks, expected 1 to 2^31 - 1");
  }
  if (block_threads < 1 || block_threads > kMaxBlockThreads) {
    throw Error("launch of blocks of " + std::to_string(block_threads) +
                " threads, expected 1 to 1024");
  }
  active.call = call;
  active.argument = argument;
  active.early = early;
  active.failure[0] = '\0';
  active.num_threads = static_cast<unsigned>(block_threads);
  active.random_state = draw(random_state_);
  constexpr uint64_t kEagerness[] = {0, 8, 15};
  active.eagerness = kEagerness[draw(active.random_state) % 3];
  const unsigned num_blocks = static_cast<unsigned>(grid_blocks);
  blockDim = {active.num_threads, 1, 1};
  gridDim = {num_blocks, 1, 1};

  active.os_thread = {};
  active.os_thread.race_context = current_race_context();
  release_as(active.os_thread.race_context, &active.launch_token);
  run_blocks(num_blocks);
  for (const Fiber& each : active.fibers) {
    if (each.race_context != nullptr) release_as(each.race_context, &active.launch_token);
  }
  acquire_as(active.os_thread.race_context, &active.launch_token);

  if (active.failure[0] == '\0') return;
  // Threads stopped in the middle of the kernel, and the call stacks that ThreadSanitizer keeps
  // with them will never be left.
  for (Fiber& each : active.fibers) {
    if (each.race_context != nullptr) destroy_race_context(each.race_context);
    each.race_context = nullptr;
  }
  throw Error(active.failure);
}

}  // namespace simt
