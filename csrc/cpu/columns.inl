// Columns of a row, widened, and their order in vectors; part of kernels.inl, compiled once per
// instruction set.

namespace {

// The numbers of two vectors at the places given: Clang's name for it, and that of GCC before 12.
#ifdef __clang__
#define DEEPREP_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DEEPREP_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a == b){__VA_ARGS__})
#endif

// The lower and the upper halves of two vectors, number by number in turn.
template <typename Vector>
inline Vector interleave_low(Vector a, Vector b) {
  if constexpr (sizeof(Vector) == 16) {
    return DEEPREP_SHUFFLE(a, b, 0, 4, 1, 5);
  } else if constexpr (sizeof(Vector) == 32) {
    return DEEPREP_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  } else {
    return DEEPREP_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
}
template <typename Vector>
inline Vector interleave_high(Vector a, Vector b) {
  if constexpr (sizeof(Vector) == 16) {
    return DEEPREP_SHUFFLE(a, b, 2, 6, 3, 7);
  } else if constexpr (sizeof(Vector) == 32) {
    return DEEPREP_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    return DEEPREP_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}

#undef DEEPREP_SHUFFLE

// Some neighbouring columns of a row: kNumParts vectors, or one number.
template <typename T, typename Part, int kNumParts>
struct Columns {
  using Accumulator = typename AccumulatorOf<T>::type;
  static constexpr int kParts = kNumParts;
  static constexpr int kWidth = sizeof(Part) / sizeof(Accumulator);
  static constexpr int kColumns = kParts * kWidth;
  Part part[kParts];

  static Columns load(const Accumulator* from) {
    Columns columns;
#pragma GCC unroll 8
    for (int v = 0; v < kParts; ++v) {
      __builtin_memcpy(&columns.part[v], from + v * kWidth, sizeof(Part));
    }
    return columns;
  }
  void store(Accumulator* to) const {
#pragma GCC unroll 8
    for (int v = 0; v < kParts; ++v) __builtin_memcpy(to + v * kWidth, &part[v], sizeof(Part));
  }
};
template <typename T>
using OneColumn = Columns<T, typename AccumulatorOf<T>::type, 1>;
template <typename T>
using OneVector = Columns<T, decltype(widen_vector(static_cast<const T*>(nullptr))), 1>;
// As many columns as a cache line holds.
template <typename T>
using Line = Columns<T, decltype(widen_vector(static_cast<const T*>(nullptr))),
                     64 / sizeof(T) / OneVector<T>::kColumns>;

// Widens the columns at `from`. A line of bfloat16 is widened by a shift and a mask, which leaves
// the even columns of a vector in one and the odd ones in the next; see in_order().
template <typename Widened, typename T>
inline Widened widen_columns(const T* from) {
  Widened columns;
  if constexpr (Widened::kWidth == 1) {
    columns.part[0] = widen(*from);
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < Widened::kParts; ++v) {
      columns.part[v] = widen_vector(from + v * Widened::kWidth);
    }
  }
  return columns;
}
template <>
inline Line<BFloat16> widen_columns<Line<BFloat16>>(const BFloat16* from) {
  Line<BFloat16> columns;
#pragma GCC unroll 8
  for (int v = 0; v < Line<BFloat16>::kParts; v += 2) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);  // the even column is the low half
    const BitsVector pairs = load<BitsVector>(from + v * kFloats);
    columns.part[v] = reinterpret_cast<FloatVector>(pairs << 16);
    columns.part[v + 1] = reinterpret_cast<FloatVector>(pairs & 0xffff0000u);
  }
  return columns;
}

// Puts the columns of whole lines into the order of the row.
template <typename T, typename Accumulator>
inline void in_order(Accumulator*, int64_t) {}
template <>
inline void in_order<BFloat16>(float* columns, int64_t num_columns) {
  const int64_t end = num_columns - num_columns % Line<BFloat16>::kColumns;
  for (int64_t j = 0; j < end; j += 2 * kFloats) {
    const FloatVector even = load<FloatVector>(columns + j);
    const FloatVector odd = load<FloatVector>(columns + j + kFloats);
    store(columns + j, interleave_low(even, odd));
    store(columns + j + kFloats, interleave_high(even, odd));
  }
}

}  // namespace
