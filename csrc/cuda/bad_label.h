// Where an update on a device notes a bad label (class_moments.h): only the device knows of it, and
// the host does not wait.
#pragma once

#include <cstdint>

namespace deeprep::cuda {

// All -1 to begin with. Once there is a row, the state is left as it is, by the update that found
// it and by all that follow, until the host puts -1 back.
struct BadLabel {
  int64_t row;       // of the first one in its batch
  int64_t label;     // its value
  int64_t is_final;  // 1 when the update that found it has ended: later ones leave the note alone
};

}  // namespace deeprep::cuda
