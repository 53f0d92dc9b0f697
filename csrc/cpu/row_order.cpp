#include "cpu/row_order.h"

#include <atomic>

#include "cpu/kernels.h"

namespace deeprep {
namespace {

enum class Order { kAuto, kClass, kInput };

std::atomic<Order>& forced() {
  static std::atomic<Order> order{Order::kAuto};
  return order;
}

constexpr const char* kNames[] = {"auto", "class", "input"};

// Input order pays where rows are short, which class order reads in pieces that no prefetcher
// follows, and where the open chunks of all classes stay in a near cache.
struct Limits {
  int64_t row_bytes;
  int64_t open_bytes;
};

// Measured, time in input order over class order, in turns, two threads, shuffled labels
// (N d = 6e7 to 1.3e8):
//
//     AMD EPYC, Zen 4          d = 32    64    128   256
//     float32, K = 10          0.74   0.82   1.01  1.15
//     bfloat16, K = 10         0.77   0.76   0.77  1.12
//     float32, K = 40                 0.91         1.23
//     bfloat16, K = 40                0.86
//     float32, K = 100                       1.08
//     bfloat16, K = 100                      1.11
//
// Elsewhere class order, until it is measured: on a Xeon with AVX-512 an earlier kernel for input
// order was slower.
Limits limits_of_this_machine() {
#ifdef DEEPREP_X86_KERNELS
  static const bool is_amd = (__builtin_cpu_init(), __builtin_cpu_is("amd"));
  if (is_amd) return {256, 48 * 1024};
#endif
  return {0, 0};
}

}  // namespace

bool set_row_order(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name != kNames[i]) continue;
    forced() = static_cast<Order>(i);
    return true;
  }
  return false;
}

std::string row_order() { return kNames[static_cast<int>(forced().load())]; }

bool visit_in_input_order(const Features& features, int64_t num_classes) {
  const Order order = forced();
  if (features.column_stride != 1 || features.num_columns > kTileColumns) return false;
  if (order != Order::kAuto) return order == Order::kInput;
  const int64_t row_bytes = features.num_columns * size_of(features.type);
  const int64_t open_bytes = num_classes * open_chunk_bytes(features.num_columns, features.type);
  const Limits limits = limits_of_this_machine();
  return row_bytes <= limits.row_bytes && open_bytes <= limits.open_bytes;
}

}  // namespace deeprep
