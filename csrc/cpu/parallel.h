// Dynamic scheduling of independent work items over threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace deeprep {

// Calls run(data) on up to num_threads threads side by side, of which the caller is one, and
// returns when all have come back. There may be fewer threads than asked for.
void run_on_threads(int num_threads, void (*run)(void*), void* data);

// Calls work(item, worker) once for every item in [0, num_items); worker is in [0, num_workers).
// Items are handed out in order; where one runs must not change what it computes.
template <typename Work>
void parallel_for(int64_t num_items, int num_workers, Work&& work) {
  std::atomic<int64_t> next_item{0};
  std::atomic<int> next_worker{0};
  const auto drain = [&] {
    const int worker = next_worker++;
    for (int64_t item = next_item++; item < num_items; item = next_item++) work(item, worker);
  };
  const int num_threads = num_items < num_workers ? static_cast<int>(num_items) : num_workers;
  if (num_threads <= 1) {
    drain();
    return;
  }
  auto run = drain;  // what a captureless function finds behind its pointer
  run_on_threads(num_threads, [](void* data) { (*static_cast<decltype(run)*>(data))(); }, &run);
}

}  // namespace deeprep
