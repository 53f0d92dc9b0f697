// What the core returns instead of throwing: a code, and the two numbers that a message needs.
#pragma once

#include <cstdint>
#include <string>

namespace deeprep {

enum class Code {
  kOk,
  kTooManyClasses,
  kBadLabel,
  kOutOfMemory,
  kScratchTooSmall,
  kCudaError,
};

struct Status {
  Code code = Code::kOk;
  // kBadLabel: its row; kTooManyClasses and kScratchTooSmall: what was expected; kCudaError: CUDA's
  // number.
  int64_t index = 0;
  int64_t value = 0;  // what was found: the label, the classes, the bytes

  bool ok() const { return code == Code::kOk; }
};

// One sentence for a person: the argument, the value found, the value wanted.
inline std::string describe(const Status& status, int64_t num_classes, int64_t ignore_index) {
  switch (status.code) {
    case Code::kOk:
      return "ok";
    case Code::kTooManyClasses:
      return "num_classes is " + std::to_string(status.value) + ", expected at most " +
             std::to_string(status.index);
    case Code::kBadLabel:
      return "labels[" + std::to_string(status.index) + "] is " + std::to_string(status.value) +
             ", expected a class in [0, " + std::to_string(num_classes) +
             ") or ignore_index = " + std::to_string(ignore_index);
    case Code::kOutOfMemory:
      return "class_moments: not enough memory for the scratch buffers";
    case Code::kScratchTooSmall:
      return "scratch is " + std::to_string(status.value) + " bytes, expected " +
             std::to_string(status.index) + " or more";
    case Code::kCudaError:
      return "CUDA error " + std::to_string(status.index);
  }
  return "unknown status";
}

}  // namespace deeprep
