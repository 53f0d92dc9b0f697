// Shuffles, matches, votes and __syncwarp: lanes wait until all that the mask names are at the same
// operation.
#include <algorithm>
#include <cstdio>

#include "launch.h"

namespace simt::detail {

namespace {

// ------------------------------------------------------------------------ texts

struct Text {
  char characters[64];
};

Text name_of(Operation operation, uint32_t mask, const char* before = "") {
  static const char* const names[] = {"__shfl_sync",     "__shfl_up_sync",   "__shfl_down_sync",
                                      "__shfl_xor_sync", "__match_any_sync", "__ballot_sync",
                                      "__any_sync",      "__all_sync",       "__syncwarp"};
  Text text;
  std::snprintf(text.characters, sizeof text.characters, "%s%s(mask 0x%08x)", before,
                names[static_cast<int>(operation)], mask);
  return text;
}

Text doing(const Thread& thread) {
  if (thread.state == State::kReturned) return {"has returned"};
  if (thread.state == State::kAtBarrier) return {"waits at __syncthreads"};
  return name_of(thread.operation, thread.mask, "waits at ");
}

// ------------------------------------------------------------------------ who keeps a lane waiting

// How much a waiting lane can blame another one of its mask for not being with it: what cannot be a
// consequence of something else comes last.
enum class Blame { kNone, kBarrier, kDisagreement, kReturned };

Blame blame(const Thread& waiting, const Thread& other) {
  if (other.state == State::kReturned) return Blame::kReturned;
  if (other.state == State::kAtBarrier) return Blame::kBarrier;
  const bool agree = other.mask == waiting.mask && other.operation == waiting.operation;
  return agree ? Blame::kNone : Blame::kDisagreement;
}

const char* describe(Blame blame) {
  if (blame == Blame::kReturned) return "a lane of its mask is inactive";
  if (blame == Blame::kBarrier) return "divergent __syncthreads";
  return "lanes disagree on the operation or its mask";
}

// ------------------------------------------------------------------------ results

// The lane that `lane` of a warp reads from, itself where CUDA clamps to the segment of `width`.
unsigned source_of(unsigned lane, const Thread& thread) {
  const int own = static_cast<int>(lane);
  const int first = own & -thread.width;
  const int last = first + thread.width - 1;
  int source = own;
  switch (thread.operation) {
    case Operation::kShuffle:
      source = first + (thread.lane & (thread.width - 1));
      break;
    case Operation::kShuffleUp:
      source = own - thread.lane;
      break;
    case Operation::kShuffleDown:
      source = own + thread.lane;
      break;
    case Operation::kShuffleXor:
      return static_cast<unsigned>((own ^ thread.lane) > last ? own : own ^ thread.lane);
    default:
      break;
  }
  return static_cast<unsigned>(source < first || source > last ? own : source);
}

template <typename Visit>
void visit_lanes(uint32_t mask, const Visit& visit) {
  for (unsigned lane = 0; lane < warpSize; ++lane) {
    if ((mask >> lane & 1) != 0) visit(lane);
  }
}

// All lanes of the mask have come.
void compute_results(Thread* warp, Operation operation, uint32_t mask) {
  uint64_t votes = 0;
  visit_lanes(mask, [&](unsigned lane) { votes |= uint64_t{warp[lane].bits != 0} << lane; });
  visit_lanes(mask, [&](unsigned lane) {
    Thread& thread = warp[lane];
    if (operation >= Operation::kBallot) {
      thread.result = votes;
      return;
    }
    if (operation == Operation::kMatchAny) {
      thread.result = 0;
      visit_lanes(mask, [&](unsigned other) {
        thread.result |= uint64_t{warp[other].bits == thread.bits} << other;
      });
      return;
    }
    const unsigned source = source_of(lane, thread);
    if ((mask >> source & 1) == 0) {
      fail("block %u, thread %d: %s: reads from lane %u, which is not in the mask", blockIdx.x,
           static_cast<int>(&thread - active.threads), name_of(operation, mask).characters, source);
    }
    thread.result = warp[source].bits;
  });
}

}  // namespace

void fail_stuck() {
  Blame worst = Blame::kNone;
  unsigned waiting = 0;
  unsigned missing = 0;
  unsigned at_barrier = 0;
  unsigned returned = 0;
  for (unsigned i = 0; i < active.num_threads; ++i) {
    const Thread& thread = active.threads[i];
    if (thread.state == State::kAtBarrier) at_barrier = i;
    if (thread.state == State::kReturned) returned = i;
    if (thread.state != State::kAtWarpOperation) continue;
    const unsigned first = i / warpSize * warpSize;
    visit_lanes(thread.mask, [&](unsigned lane) {
      const Blame found = blame(thread, active.threads[first + lane]);
      if (found <= worst) return;
      worst = found;
      waiting = i;
      missing = first + lane;
    });
  }
  if (worst == Blame::kNone) {
    fail(
        "block %u, thread %u: divergent __syncthreads: %u of %u threads wait at it, thread %u has "
        "returned",
        blockIdx.x, at_barrier, active.num_at_barrier, active.num_threads, returned);
  }
  const Thread& thread = active.threads[waiting];
  fail("block %u, thread %u: %s can never complete: %s: lane %u %s", blockIdx.x, waiting,
       name_of(thread.operation, thread.mask).characters, describe(worst), missing % warpSize,
       doing(active.threads[missing]).characters);
}

uint64_t synchronize_warp(Operation operation, uint32_t mask, uint64_t bits, int lane, int width) {
  const unsigned own = active.current % warpSize;
  const unsigned first = active.current - own;
  const unsigned present = std::min<unsigned>(active.num_threads - first, warpSize);
  const auto refuse = [&](const char* reason) {
    fail("block %u, thread %u: %s: %s", blockIdx.x, active.current,
         name_of(operation, mask).characters, reason);
  };
  if ((mask >> own & 1) == 0) refuse("the calling lane is not in its mask");
  if (uint64_t{mask} >> present != 0) refuse("the mask names a lane that the block does not have");
  if (width < 1 || width > warpSize || (width & (width - 1)) != 0) {
    refuse("the width is not a power of two up to 32");
  }

  Thread* warp = active.threads + first;
  Thread& self = warp[own];
  self.state = State::kAtWarpOperation;
  self.operation = operation;
  self.mask = mask;
  self.bits = bits;
  self.lane = lane;
  self.width = width;
  bool complete = true;
  visit_lanes(mask, [&](unsigned i) {
    complete = complete && warp[i].state == State::kAtWarpOperation &&
               blame(self, warp[i]) == Blame::kNone;
  });
  if (complete) {
    compute_results(warp, operation, mask);
    if (operation == Operation::kSync) {
      order_memory(first + static_cast<unsigned>(__builtin_ctz(mask)), [&](const auto& visit) {
        visit_lanes(mask, [&](unsigned i) { visit(first + i); });
      });
    }
    visit_lanes(mask, [&](unsigned i) { make_ready(first + i); });
  }
  run_next(Leaving::kForNow);
  return self.result;
}

}  // namespace simt::detail
