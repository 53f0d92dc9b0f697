// The launch that runs: what its scheduler (executor.cpp) and its warp operations (warp.cpp) share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "executor.h"
#include "fiber.h"

namespace simt::detail {

constexpr unsigned kMaxBlockThreads = 1024;

// Fibers that ThreadSanitizer tells apart cost it (that of GCC 12) 0.8 ms and 0.8 MB each, too much
// for a new one per thread of a launch: blocks take turns with a few sets of fibers. As a fiber
// comes before itself, a race between two blocks on the same set is not seen. Which blocks share a
// set follows from the seed, which orders the blocks: a race between two blocks is seen with half
// of the seeds or more, and always where the grid has two.
constexpr unsigned kFibers = 256;
constexpr unsigned kMinFiberSets = 2;
constexpr unsigned kMaxFiberSets = 8;

enum class State { kReady, kAtBarrier, kAtWarpOperation, kReturned };

struct Thread {
  Fiber* fiber = nullptr;
  State state = State::kReady;
  // What it waits for at a warp operation, and there the result.
  Operation operation = Operation::kSync;
  uint32_t mask = 0;
  uint64_t bits = 0;
  int lane = 0;
  int width = 0;
  uint64_t result = 0;
  bool has_waited = false;  // for the launch ahead
};

struct SharedMemory {
  const void* declaration;
  void* data;
  std::align_val_t alignment;
};

// What device threads look at are arrays, not vectors: the inline functions of a vector may be
// linked from a file built with ThreadSanitizer, which this is not for.
struct Launch {
  void (*call)(const void*) = nullptr;
  const void* argument = nullptr;
  bool early = false;  // it may start before the launch ahead has ended
  bool running = false;
  char failure[320] = {};  // empty: none

  unsigned num_threads = 0;
  unsigned current = 0;
  unsigned num_ready = 0;
  unsigned num_at_barrier = 0;
  unsigned num_returned = 0;
  Thread threads[kMaxBlockThreads];
  unsigned ready[kMaxBlockThreads];
  uint64_t random_state = 0;
  uint64_t eagerness = 0;  // of 16 choices, how many go to the thread that became ready last

  Fiber os_thread;
  std::vector<Fiber> fibers;  // set by set
  std::vector<SharedMemory> shared;

  // Tokens stand for synchronisations: of a launch with what is before and after it, and, in each
  // set of fibers, of threads of which this is the lowest. One token per lowest thread is enough:
  // that thread takes part in all of them, and so orders them anyway.
  unsigned fiber_set = 0;
  Token launch_token = 0;
  Token tokens[kMaxFiberSets][kMaxBlockThreads] = {};
};

extern Launch active;

// Ends the launch: the running thread never returns to its kernel, and the OS thread throws.
// Nothing on a fiber's stack is destroyed, so the reason is formatted into the launch.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// No thread of the block can ever go on: fails and says why.
[[noreturn]] void fail_stuck();

void make_ready(unsigned thread);

// Hands over to a thread that is ready, perhaps the same.
void run_next(Leaving leaving);

// What any of these threads did comes before what any of them will do.
template <typename Visit>
void order_memory(unsigned lowest, const Visit& visit_threads) {
  if (!kDetectsRaces) return;
  Token* token = &active.tokens[active.fiber_set][lowest];
  visit_threads([&](unsigned i) { release_as(active.threads[i].fiber->race_context, token); });
  visit_threads([&](unsigned i) { acquire_as(active.threads[i].fiber->race_context, token); });
}

}  // namespace simt::detail
