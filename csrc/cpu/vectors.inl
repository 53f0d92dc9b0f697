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
#elif defined(DEEPREP_NEON)
  return reinterpret_cast<FloatVector>(vcvt_f32_f16(load<float16x4_t>(from)));
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

// Accumulators, rounded to what they are stored as.
inline void store_rounded(float* to, float value) { *to = value; }
inline void store_rounded(double* to, double value) { *to = value; }
inline void store_rounded(BFloat16* to, float value) { to->bits = round_to_bfloat16(value); }
inline void store_rounded(Half* to, float value) { to->bits = round_to_half(value); }
inline void store_rounded(float* to, FloatVector value) { store(to, value); }
inline void store_rounded(double* to, DoubleVector value) { store(to, value); }
inline void store_rounded(BFloat16* to, FloatVector value) {
  const auto bits = reinterpret_cast<BitsVector>(value);
  const auto is_number = reinterpret_cast<BitsVector>(value == value);
  const BitsVector rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  store(to, __builtin_convertvector((rounded & is_number) | (0x7fc0u & ~is_number), HalfOfShorts));
}
inline void store_rounded(Half* to, FloatVector value) {
#if defined(__AVX512F__)
  store(to, _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(value), 0));
#elif defined(__F16C__)
  store(to, _mm256_cvtps_ph(reinterpret_cast<__m256>(value), 0));
#elif defined(DEEPREP_NEON)
  store(to, vcvt_f16_f32(reinterpret_cast<float32x4_t>(value)));
#else
  for (int i = 0; i < kFloats; ++i) store_rounded(to + i, value[i]);
#endif
}

// a * b + c, rounded once: the same number on every machine. Without the instruction float32 goes
// through float64, where the product is exact and the sum is rounded to odd: of the two float64
// neighbours of the exact sum the one with an odd last bit, from which rounding to float32 is right
// (Boldo and Melquiond, 2008).
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#if defined(__AVX512F__)
inline FloatVector fma(FloatVector a, FloatVector b, FloatVector c) {
  return reinterpret_cast<FloatVector>(_mm512_fmadd_ps(a, b, c));
}
inline DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
  return reinterpret_cast<DoubleVector>(_mm512_fmadd_pd(a, b, c));
}
#elif defined(__FMA__)
inline FloatVector fma(FloatVector a, FloatVector b, FloatVector c) {
  return reinterpret_cast<FloatVector>(_mm256_fmadd_ps(a, b, c));
}
inline DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
  return reinterpret_cast<DoubleVector>(_mm256_fmadd_pd(a, b, c));
}
#elif defined(DEEPREP_NEON)
inline FloatVector fma(FloatVector a, FloatVector b, FloatVector c) {
  return reinterpret_cast<FloatVector>(vfmaq_f32(c, a, b));
}
inline DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
  return reinterpret_cast<DoubleVector>(vfmaq_f64(c, a, b));
}
#else
inline FloatVector fma(FloatVector a, FloatVector b, FloatVector c) {
  typedef double Doubles __attribute__((vector_size(2 * kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(2 * kVectorBytes)));
  const Doubles product = __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles);
  const Doubles addend = __builtin_convertvector(c, Doubles);
  const Doubles sum = product + addend;
  const Doubles part = sum - product;
  const Doubles error = (product - (sum - part)) + (addend - part);
  const Bits is_inexact = (error < 0) | (error > 0);  // false for a NaN
  const Bits bits = reinterpret_cast<Bits>(sum);
  const Bits grows = (error < 0) == (sum < 0);  // -1 where the exact sum is the larger in size
  const Bits is_even = (bits & 1) - 1;
  const Bits odd = bits + (is_inexact & is_even & (-1 - 2 * grows));
  return __builtin_convertvector(reinterpret_cast<Doubles>(odd), FloatVector);
}
inline DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
  DoubleVector result;
  for (int i = 0; i < kDoubles; ++i) result[i] = fma(a[i], b[i], c[i]);
  return result;
}
#endif

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
