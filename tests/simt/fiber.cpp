// How fibers switch: six registers and the stack pointer on x86-64, ucontext elsewhere.
//
// SIMT_ADDRESS_SANITIZER and SIMT_THREAD_SANITIZER tell how the kernels are built; this file and
// executor.cpp are built without sanitizers, see CMakeLists.txt.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(SIMT_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#if defined(__x86_64__)
// simt_switch_stack(rdi: where to keep this stack pointer, rsi: the stack pointer to go on with).
asm(R"(
.text
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");
extern "C" void simt_switch_stack(void** left_at, void* go_on_at);
#endif

namespace simt::detail {

namespace {

// Room for a sanitizer's report, which is written on the stack of the fiber at fault.
constexpr size_t kStackBytes = 256 * 1024;

}  // namespace

// ------------------------------------------------------------------------ switching

void prepare(Fiber& fiber, void (*entry)()) {
#if defined(SIMT_ADDRESS_SANITIZER)
  // A launch that failed left its frames behind, and the red zones in them.
  __asan_unpoison_memory_region(fiber.bottom, fiber.size);
#endif
#if defined(__x86_64__)
  // As if `entry` had just been called, by nobody: aligned as the ABI wants, the return address 0.
  auto** top = reinterpret_cast<void**>(fiber.bottom + fiber.size);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.left_at = top;
#else
  getcontext(&fiber.left_at);
  fiber.left_at.uc_stack.ss_sp = fiber.bottom;
  fiber.left_at.uc_stack.ss_size = fiber.size;
  fiber.left_at.uc_link = nullptr;
  makecontext(&fiber.left_at, entry, 0);
#endif
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] Leaving leaving) {
#if defined(SIMT_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(leaving == Leaving::kForGood ? nullptr : &from.fake_stack,
                                 to.bottom, to.size);
#endif
#if defined(SIMT_THREAD_SANITIZER)
  __tsan_switch_to_fiber(to.race_context, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  simt_switch_stack(&from.left_at, to.left_at);
#else
  swapcontext(&from.left_at, &to.left_at);
#endif
#if defined(SIMT_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void entered([[maybe_unused]] Fiber& thread) {
#if defined(SIMT_ADDRESS_SANITIZER)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (thread.bottom == nullptr) {
    thread.bottom = static_cast<char*>(const_cast<void*>(bottom));
    thread.size = size;
  }
#endif
}

void allocate_stack(Fiber& fiber) {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) throw std::bad_alloc();
  fiber.bottom = static_cast<char*>(memory) + guard;
  fiber.size = kStackBytes;
}

// ------------------------------------------------------------------------ ThreadSanitizer

#if defined(SIMT_THREAD_SANITIZER)

void* current_race_context() { return __tsan_get_current_fiber(); }
void* create_race_context() { return __tsan_create_fiber(0); }
void destroy_race_context(void* context) { __tsan_destroy_fiber(context); }

namespace {

// ThreadSanitizer can be told that another fiber runs while this one does.
template <typename Act>
void act_as(void* race_context, const Act& act) {
  void* own = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_context, __tsan_switch_to_fiber_no_sync);
  act();
  __tsan_switch_to_fiber(own, __tsan_switch_to_fiber_no_sync);
}

}  // namespace

void release_as(void* race_context, Token* token) {
  act_as(race_context, [&] { __tsan_release(token); });
}
void acquire_as(void* race_context, Token* token) {
  act_as(race_context, [&] { __tsan_acquire(token); });
}

void hide_accesses() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
void show_accesses() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

#else

void* current_race_context() { return nullptr; }
void* create_race_context() { return nullptr; }
void destroy_race_context(void*) {}
void release_as(void*, Token*) {}
void acquire_as(void*, Token*) {}
void hide_accesses() {}
void show_accesses() {}

#endif

}  // namespace simt::detail
