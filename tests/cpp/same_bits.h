// Updates that are the same on every machine, for comparing what different machines make of them.
#pragma once

#include <cstdint>

namespace deeprep::testing {

// A hash of the states that the updates end in, and of the squared distances and shifted rows that
// follow from them, at the SIMD level in use.
uint64_t hash_of_updates();

}  // namespace deeprep::testing
