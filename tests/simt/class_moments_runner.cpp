// Runs the CUDA kernels on the host, for tests that ask: reads requests from stdin until it ends,
// answers each on stdout. Everything is binary, in the machine's byte order:
//
//     request   struct Request, then the arrays that `operation` needs, contiguous
//     reply     int64 failed, int64 num_bytes, then the arrays written; if failed, a message
//
// Every array lies in a heap block of its exact size, so that AddressSanitizer sees what is read or
// written beyond.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "host_device.h"

namespace {

using namespace deeprep;
using simt::HostDevice;

enum class Operation : int64_t {
  kClassMoments,
  kShiftRows,
  kSquaredDistances,
  kPlan,
  kTables,
  kRecordedLaunches
};

struct Request {
  Operation operation;
  int64_t feature_type;
  int64_t label_type;
  int64_t num_rows;
  int64_t num_columns;
  int64_t num_classes;
  int64_t row_stride;  // in elements
  int64_t column_stride;
  int64_t extent;      // elements that the strides span
  int64_t first;       // the element among them at row 0, column 0
  int64_t misaligned;  // bytes by which they miss a 16-byte aligned address
  int64_t ignore_index;
  int64_t has_center;
  int64_t has_offsets;
  int64_t seed;
  int64_t threads_per_block;
  int64_t max_blocks;
  int64_t pass;  // simt::Pass
  int64_t num_multiprocessors;
  int64_t missing_scratch;  // bytes of scratch too few

  FeatureType type() const { return static_cast<FeatureType>(feature_type); }
  HostDevice device() const {
    return {static_cast<uint64_t>(seed), static_cast<int>(threads_per_block), max_blocks,
            static_cast<simt::Pass>(pass), num_multiprocessors};
  }
};

bool read(void* to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

void write(const void* from, size_t bytes) {
  if (std::fwrite(from, 1, bytes, stdout) != bytes) throw std::runtime_error("nobody listens");
}

// Bytes of its own, from `skipped` bytes after a 256-byte aligned address on; 0xff until written,
// so that what is read too early is -1 as an integer and NaN as a number.
class Memory {
 public:
  explicit Memory(int64_t bytes, int64_t skipped = 0)
      : bytes_(static_cast<size_t>(bytes)),
        skipped_(static_cast<size_t>(skipped)),
        block_(static_cast<char*>(::operator new(bytes_ + skipped_, kAlignment))) {
    std::memset(data(), 0xff, bytes_);
  }

  static Memory from_request(int64_t bytes, int64_t skipped = 0) {
    Memory memory(bytes, skipped);
    if (!read(memory.data(), memory.bytes_)) throw std::runtime_error("the request is cut short");
    return memory;
  }

  char* data() const { return block_.get() + skipped_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }
  size_t size() const { return bytes_; }

 private:
  static constexpr std::align_val_t kAlignment{cuda::kScratchAlignment};
  struct Free {
    void operator()(char* block) const { ::operator delete(block, kAlignment); }
  };

  size_t bytes_;
  size_t skipped_;
  std::unique_ptr<char, Free> block_;
};

template <typename... Memories>
void reply(const Memories&... memories) {
  const int64_t header[] = {0, static_cast<int64_t>((memories.size() + ...))};
  write(header, sizeof header);
  (write(memories.data(), memories.size()), ...);
}

void reply_failure(const std::string& message) {
  const int64_t header[] = {1, static_cast<int64_t>(message.size())};
  write(header, sizeof header);
  write(message.data(), message.size());
}

// Features and labels of a request.
struct BatchMemory {
  explicit BatchMemory(const Request& request)
      : feature_memory(
            Memory::from_request(request.extent * size_of(request.type()), request.misaligned)),
        label_memory(Memory::from_request(request.num_rows * (request.label_type == 0 ? 4 : 8))),
        features{feature_memory.data() + request.first * size_of(request.type()),
                 request.type(),
                 request.num_rows,
                 request.num_columns,
                 request.row_stride,
                 request.column_stride},
        labels{label_memory.data(), static_cast<LabelType>(request.label_type),
               request.ignore_index} {}

  Memory feature_memory;
  Memory label_memory;
  Features features;
  Labels labels;
};

void run_class_moments(const Request& request) {
  const BatchMemory batch(request);
  const int64_t num_classes = request.num_classes;
  const Memory counts = Memory::from_request(8 * num_classes);
  const Memory means = Memory::from_request(8 * num_classes * request.num_columns);
  const Memory sumsq = Memory::from_request(8 * num_classes);
  const Memory bad_label = Memory::from_request(sizeof(cuda::BadLabel));
  HostDevice device = request.device();
  const int64_t needed =
      request.num_rows == 0 ? 0 : simt::scratch_bytes(device, batch.features, num_classes);
  const int64_t scratch_bytes = needed - request.missing_scratch;
  const Memory scratch(scratch_bytes);
  const Status status = cuda::launch_class_moments(
      device, batch.features, batch.labels,
      {counts.as<int64_t>(), means.as<double>(), sumsq.as<double>(), num_classes},
      bad_label.as<cuda::BadLabel>(), scratch.data(), scratch_bytes);
  if (!status.ok()) throw std::runtime_error(describe(status, num_classes, 0));
  reply(counts, means, sumsq, bad_label);
}

void run_shift_rows(const Request& request) {
  const BatchMemory batch(request);
  const bool has_offsets = request.has_offsets != 0;
  const int64_t size = accumulator_size_of(request.type());
  const int64_t class_bytes = request.num_classes * request.num_columns * size;
  const Memory pivots = Memory::from_request(class_bytes);
  const Memory scales = Memory::from_request(8 * request.num_classes * request.has_offsets);
  const Memory offsets = Memory::from_request(class_bytes * request.has_offsets);
  const Memory out(request.num_rows * request.num_columns *
                   (has_offsets ? size_of(request.type()) : size));
  HostDevice device = request.device();
  cuda::launch_shift_rows(device, batch.features, batch.labels,
                          {pivots.data(), has_offsets ? scales.as<double>() : nullptr,
                           has_offsets ? offsets.data() : nullptr},
                          out.data());
  reply(out);
}

void run_squared_distances(const Request& request) {
  const Memory points = Memory::from_request(8 * request.num_classes * request.num_columns);
  const Memory center = Memory::from_request(8 * request.num_columns * request.has_center);
  const Memory out(8 * request.num_classes);
  HostDevice device = request.device();
  cuda::launch_squared_distances(device, points.as<double>(),
                                 request.has_center != 0 ? center.as<double>() : nullptr,
                                 out.as<double>(), request.num_classes, request.num_columns);
  reply(out);
}

// Groups, rows of a group, rows of a block, strips, and whether chunks are summed side by side: so
// that a test can say what its shape is for.
void reply_plan(const Request& request) {
  const Plan plan =
      make_plan(request.num_rows, request.num_columns, request.type(), request.num_classes);
  const int64_t numbers[] = {plan.num_groups, plan.group_rows, plan.block_rows, plan.num_strips,
                             request.device().use_chunks(request.num_rows, request.num_columns,
                                                         request.type(), request.num_classes)};
  const Memory out(sizeof numbers);
  std::memcpy(out.data(), numbers, sizeof numbers);
  reply(out);
}

// Runs the tables alone: numbers of the plan's blocks and groups, the bad label, and the tables.
void run_tables(const Request& request) {
  const BatchMemory features_and_labels(request);
  const Memory bad_label = Memory::from_request(sizeof(cuda::BadLabel));
  const int64_t num_classes = request.num_classes;
  HostDevice device = request.device();
  const Memory memory(simt::scratch_bytes(device, features_and_labels.features, num_classes));
  const cuda::ScratchLayout<HostDevice> layout(device, request.num_rows, request.num_columns,
                                               request.type(), num_classes, memory.data());
  const cuda::Batch batch =
      make_batch(layout, features_and_labels.features, features_and_labels.labels,
                 {nullptr, nullptr, nullptr, num_classes}, bad_label.as<cuda::BadLabel>(), true);
  launch_tables(device, layout, batch);

  const int64_t numbers[] = {layout.num_blocks, layout.plan.block_rows, layout.plan.num_groups,
                             layout.plan.group_rows, layout.tiling.num_tiles};
  const auto copy = [](const auto* from, int64_t count) {
    Memory to(count * static_cast<int64_t>(sizeof *from));
    if (count > 0) std::memcpy(to.data(), from, to.size());
    return to;
  };
  const cuda::Scratch& scratch = layout.scratch;
  const bool ok = bad_label.as<cuda::BadLabel>()->row == -1;
  const int64_t num_slices = ok ? layout.num_blocks * num_classes + 1 : 0;
  const int64_t num_slots = ok ? layout.num_slots + 1 : 0;
  reply(copy(numbers, 5), bad_label, copy(scratch.slice_begin, num_slices),
        copy(scratch.first_chunk, layout.has_tiles ? num_slices : 0),
        copy(scratch.chunk_begin,
             ok && layout.has_tiles ? scratch.first_chunk[num_slices - 1] + 1 : 0),
        copy(scratch.sorted_rows, ok ? scratch.slice_begin[num_slices - 1] : 0),
        copy(scratch.first_segment, num_slots),
        copy(scratch.segments, ok ? scratch.first_segment[num_slots - 1] : 0));
}

// Blocks and threads of each launch of an update, on a GPU of max_blocks multiprocessors.
void reply_launches(const Request& request) {
  simt::LaunchRecorder device(request.max_blocks);
  const Status status = cuda::launch_class_moments(
      device,
      {nullptr, request.type(), request.num_rows, request.num_columns, request.num_columns, 1},
      {nullptr, static_cast<LabelType>(request.label_type), request.ignore_index},
      {nullptr, nullptr, nullptr, request.num_classes}, nullptr, nullptr, INT64_MAX);
  if (!status.ok()) throw std::runtime_error(describe(status, request.num_classes, 0));
  const auto& launches = device.launches();
  const Memory out(static_cast<int64_t>(launches.size() * sizeof launches[0]));
  std::memcpy(out.data(), launches.data(), out.size());
  reply(out);
}

void run(const Request& request) {
  switch (request.operation) {
    case Operation::kClassMoments:
      return run_class_moments(request);
    case Operation::kShiftRows:
      return run_shift_rows(request);
    case Operation::kSquaredDistances:
      return run_squared_distances(request);
    case Operation::kPlan:
      return reply_plan(request);
    case Operation::kTables:
      return run_tables(request);
    case Operation::kRecordedLaunches:
      return reply_launches(request);
  }
  throw std::runtime_error("no such operation");
}

}  // namespace

int main() {
  constexpr unsigned kMostSeconds = 120;
  Request request;
  while (read(&request, sizeof request)) {
    alarm(kMostSeconds);  // a kernel that never ends ends the process
    try {
      run(request);
    } catch (const std::exception& error) {
      reply_failure(error.what());
    }
    std::fflush(stdout);
    alarm(0);
  }
  return 0;
}
