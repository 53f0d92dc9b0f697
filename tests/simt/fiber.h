// Fibers: stacks to switch between on one OS thread, announced to the sanitizers.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt::detail {

// Where a stack was left. With swapcontext, which makes a system call, launches take eight times as
// long.
#if defined(__x86_64__)
using Place = void*;  // its stack pointer
#else
using Place = ucontext_t;
#endif

// A stack and its place. The one that `entered` fills in stands for the OS thread itself.
struct Fiber {
  Place left_at{};
  char* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;    // AddressSanitizer's
  void* race_context = nullptr;  // ThreadSanitizer's: whose accesses these are
};

// `entry` runs on the fiber's empty stack when it is next switched to; it never returns. What was
// on the stack before is forgotten.
void prepare(Fiber& fiber, void (*entry)());

// Leaves `from` until something switches to it again, or for good.
enum class Leaving { kForNow, kForGood };
void switch_fiber(Fiber& from, Fiber& to, Leaving leaving);

// To be called first on a newly entered fiber. `thread` is the OS thread's; its stack, if not known
// yet, is the one that was left.
void entered(Fiber& thread);

// Gives the fiber a stack with a guard page below, for good: launches come one after the other and
// use the stacks again.
void allocate_stack(Fiber& fiber);

// ------------------------------------------------------------------------ ThreadSanitizer
// All of this does nothing in other builds.

#if defined(SIMT_THREAD_SANITIZER)
constexpr bool kDetectsRaces = true;
#else
constexpr bool kDetectsRaces = false;
#endif

void* current_race_context();
void* create_race_context();
void destroy_race_context(void* context);

using Token = uint64_t;  // only its address matters

// What the first did so far comes before what the second will do, if they name the same token.
void release_as(void* race_context, Token* token);
void acquire_as(void* race_context, Token* token);

// Between these, memory is allocated, read, written and freed on nobody's behalf.
void hide_accesses();
void show_accesses();

class UnseenMemory {
 public:
  UnseenMemory() { hide_accesses(); }
  ~UnseenMemory() { show_accesses(); }
  UnseenMemory(const UnseenMemory&) = delete;
  UnseenMemory& operator=(const UnseenMemory&) = delete;
};

}  // namespace simt::detail
