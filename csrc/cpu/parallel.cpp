#include "cpu/parallel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <exception>
#include <thread>
#include <vector>

namespace deeprep {
namespace {

// How GCC's OpenMP runtime starts a parallel region; those of LLVM and Intel have it too. flags: 0.
using StartRegion = void (*)(void (*run)(void*), void* data, unsigned num_threads, unsigned flags);

const pid_t process_at_load = getpid();

// The threads of the OpenMP runtime that torch has loaded, if there is one. They are awake for some
// milliseconds after an operation of torch's: threads of our own would have to share the cores with
// them. A forked process has none of its parent's threads, which the runtime does not know, and
// would wait for them for ever.
StartRegion openmp_of_torch() {
  static const StartRegion start =
      reinterpret_cast<StartRegion>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == process_at_load ? start : nullptr;
}

}  // namespace

void run_on_threads(int num_threads, void (*run)(void*), void* data) {
  if (const StartRegion start = openmp_of_torch()) {
    start(run, data, static_cast<unsigned>(num_threads), 0);
    return;
  }
  // Threads are made for the call: one that sleeps between calls takes as long to be woken.
  std::vector<std::thread> threads;
  try {
    threads.reserve(num_threads - 1);
    for (int i = 1; i < num_threads; ++i) threads.emplace_back(run, data);
  } catch (const std::exception&) {
    // No more threads to be had: those that started, or the caller alone, do all the work.
  }
  run(data);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace deeprep
