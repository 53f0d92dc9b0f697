// Vectors of kVectorBytes and the exact widening of features to their accumulator; part of
// kernels.inl, compiled once per instruction set.

namespace {

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVector __attribute__((vector_size(kVectorBytes)));
typedef uint32_t BitsVector __attribute__((vector_size(kVectorBytes)));
typedef float HalfOfFloats __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t HalfOfShorts __attribute__((vector_size(kVectorBytes / 2)));

constexpr int kFloats = kVectorBytes / sizeof(float);
constexpr int kDoubles = kVectorBytes / sizeof(double);

template <typename Vector>
inline Vector load(const void* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof vector);
  return vector;
}
template <typename Vector>
inline void store(void* to, Vector vector) {
  __builtin_memcpy(to, &vector, sizeof vector);
}

// Features travel as raw bits for the half types; widening is exact.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) { return load<float>(&bits); }
inline uint32_t to_bits(float value) { return load<uint32_t>(&value); }

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }
// Subnormals are an integer times 2^-24; the rest moves its exponent from bias 15 to 127, Inf and
// NaN to all ones.
inline float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rebias = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const uint32_t subnormal = to_bits(static_cast<float>(magnitude) * 0x1p-24f);
  return from_bits(sign | (magnitude < 0x0400u ? subnormal : (magnitude << 13) + rebias));
}

// kFloats 16-bit patterns as 32-bit ones. GCC 12 splits the generic conversion into halves, so the
// instruction is named where there is one.
inline BitsVector widen_bits(const void* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<BitsVector>(_mm512_maskz_cvtepu16_epi32(0xffff, load<__m256i>(from)));
#elif defined(__AVX2__)
  return reinterpret_cast<BitsVector>(_mm256_cvtepu16_epi32(load<__m128i>(from)));
#else
  return __builtin_convertvector(load<HalfOfShorts>(from), BitsVector);
#endif
}

inline FloatVector widen_vector(const float* from) { return load<FloatVector>(from); }
inline DoubleVector widen_vector(const double* from) { return load<DoubleVector>(from); }
inline FloatVector widen_vector(const BFloat16* from) {
  return reinterpret_cast<FloatVector>(widen_bits(from) << 16);
}
inline FloatVector widen_vector(const Half* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<FloatVector>(_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(from)));
#elif defined(__F16C__)
  return reinterpret_cast<FloatVector>(_mm256_cvtph_ps(load<__m128i>(from)));
#else
  typedef int32_t IntVector __attribute__((vector_size(kVectorBytes)));
  const BitsVector bits = widen_bits(from);
  const BitsVector magnitude = bits & 0x7fffu;
  const auto is_special = reinterpret_cast<BitsVector>(magnitude >= 0x7c00u);
  const auto is_subnormal = reinterpret_cast<BitsVector>(magnitude < 0x0400u);
  const auto integer = __builtin_convertvector(reinterpret_cast<IntVector>(magnitude), FloatVector);
  const auto subnormal = reinterpret_cast<BitsVector>(integer * 0x1p-24f);
  const BitsVector normal = (magnitude << 13) + 0x38000000u + (is_special & 0x38000000u);
  const BitsVector widened = (is_subnormal & subnormal) | (~is_subnormal & normal);
  return reinterpret_cast<FloatVector>(((bits & 0x8000u) << 16) | widened);
#endif
}

// kDoubles numbers as doubles.
inline DoubleVector load_doubles(const double* from) { return load<DoubleVector>(from); }
inline DoubleVector load_doubles(const float* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<DoubleVector>(_mm512_maskz_cvtps_pd(0xff, load<__m256>(from)));
#elif defined(__AVX2__)
  return reinterpret_cast<DoubleVector>(_mm256_cvtps_pd(load<__m128>(from)));
#else
  return __builtin_convertvector(load<HalfOfFloats>(from), DoubleVector);
#endif
}

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};

}  // namespace
