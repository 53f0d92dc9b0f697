// Rounding float32 to the two-byte element types: to nearest, ties to even, as IEEE 754 has it. One
// header for host and device; every function is `static` for the reason given in moments.h.
#pragma once

#include <cstdint>

#include "moments.h"

namespace deeprep {

// Bits of the bfloat16. What is not a number becomes one NaN.
DEEPREP_HOST_DEVICE static inline uint16_t round_to_bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

// Bits of the float16. Below 2^-14 it is an integer times 2^-24, which is how far apart floats lie
// from 0.5 on: adding that rounds. The rest moves its exponent from bias 127 to 15. A carry out of
// the largest number gives infinity.
DEEPREP_HOST_DEVICE static inline uint16_t round_to_half(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  float size;
  __builtin_memcpy(&size, &magnitude, sizeof size);
  const float moved = size + 0.5f;
  uint32_t subnormal;
  __builtin_memcpy(&subnormal, &moved, sizeof subnormal);
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  uint32_t rounded = magnitude < 0x38800000u ? subnormal - 0x3f000000u : normal;
  if (magnitude >= 0x47800000u) rounded = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | rounded);
}

}  // namespace deeprep
