#include "fused_multiply_add.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>

#include "expect.h"

namespace deeprep::generic {
constexpr int kVectorBytes = 16;
#include "cpu/vectors.inl"
}  // namespace deeprep::generic

namespace deeprep::testing {
namespace {

constexpr int64_t kBias = 127;

// Any sign and digits, the last `num_zeros` of them zero; 2^exponent or a little more in size.
float draw_near(int64_t exponent, int num_zeros, std::mt19937_64& random) {
  const int64_t biased = exponent + kBias;
  const uint32_t in_range = biased < 0 ? 0 : biased > 254 ? 254 : static_cast<uint32_t>(biased);
  const uint32_t digits = static_cast<uint32_t>(random()) & 0x807fffffu;
  return generic::from_bits((digits >> num_zeros << num_zeros) | in_range << 23);
}

struct Operands {
  float a, b, c;
};

// Operands near whose result rounding goes wrong if anywhere.
Operands draw_operands(int64_t trial, std::mt19937_64& random) {
  const auto between = [&](int64_t first, int64_t last) {
    return first + static_cast<int64_t>(random() % (last - first + 1));
  };
  const auto any = [&] {
    constexpr uint32_t kEdges[] = {0,          1,          0x007fffff, 0x00800000,
                                   0x3f800000, 0x7f7fffff, 0x7f800000, 0x7fc00000};
    const uint32_t bits = static_cast<uint32_t>(random());
    return generic::from_bits(random() % 2 == 0 ? bits : (bits & 0x80000000u) | kEdges[bits % 8]);
  };
  const int64_t exponent = between(-30, 30);
  switch (trial % 7) {
    case 0:  // any bits, and zero, one, infinity, NaN, the ends of the normal and subnormal numbers
      return {any(), any(), any()};
    case 1: {  // c of about the size of the product, or some way above or below
      const float a = draw_near(exponent, 0, random);
      return {a, draw_near(0, 0, random), draw_near(exponent + between(-30, 60), 0, random)};
    }
    case 2: {  // products halfway between two floats, and c decides
      const float a = draw_near(exponent, 11, random);
      return {a, draw_near(0, 11, random), draw_near(exponent - between(20, 80), 0, random)};
    }
    case 3: {  // c cancels the product but for its rounding
      const float a = draw_near(exponent, 0, random);
      const float b = draw_near(0, 0, random);
      return {a, b, -(a * b)};
    }
    case 4: {  // subnormal results
      const float a = draw_near(-70, static_cast<int>(between(0, 20)), random);
      return {a, draw_near(between(-90, -55), 0, random),
              draw_near(between(-127, -120), 0, random)};
    }
    case 5: {  // products of 2^exponent (1 - u^2 2^-46), half the last digit of c and a little less
      const float u = static_cast<float>(between(1, 2000)) * 0x1p-23F;
      const float scale = draw_near(exponent, 23, random);
      return {1 + u, (1 - u) * scale, draw_near(exponent + 24, 0, random)};
    }
    default: {  // at the edge of overflow
      const float a = draw_near(63, 0, random);
      return {a, draw_near(63 + between(-1, 1), 0, random),
              draw_near(between(100, 127), 0, random)};
    }
  }
}

}  // namespace

void check_fused_multiply_add() {
  std::mt19937_64 random(31);
  for (int64_t trial = 0; trial < 1000000; ++trial) {
    generic::FloatVector a, b, c;
    for (int i = 0; i < generic::kFloats; ++i) {
      const Operands operands = draw_operands(trial, random);
      a[i] = operands.a;
      b[i] = operands.b;
      c[i] = operands.c;
    }
    const generic::FloatVector found = generic::fma(a, b, c);
    for (int i = 0; i < generic::kFloats; ++i) {
      const float wanted = std::fmaf(a[i], b[i], c[i]);
      const bool is_same = std::isnan(wanted)
                               ? std::isnan(found[i])
                               : generic::to_bits(found[i]) == generic::to_bits(wanted);
      if (is_same) continue;
      char text[160];
      std::snprintf(text, sizeof text, "fma(%a, %a, %a) is %a, expected %a", double{a[i]},
                    double{b[i]}, double{c[i]}, double{found[i]}, double{wanted});
      fail(text);
    }
  }
}

}  // namespace deeprep::testing
