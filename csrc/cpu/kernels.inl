// The chunk kernel, compiled once per instruction set (kernels_portable.cpp, kernels_avx2.cpp,
// kernels_avx512.cpp) inside the namespace of that set, with kVectorBytes its vector width.
//
// Algorithm: pivoted chunks, see moments.h. Per column the order of additions is fixed (rows join
// in groups of up to eight, pair by pair, and groups one after the other) and no operation is
// contracted, so vector width cannot change a bit. Parallel axis: columns, one vector at a time.
//
// Eight rows join at each visit of the accumulators t and q, which live in the first-level cache:
// they are loaded and stored an eighth as often as features are read, and sums stay shallow (11
// roundings for 64 rows). Variants tried, one core, features in the second-level cache:
// - four rows a visit left to the compiler's vectoriser: 9.5 GB/s, since pivot, t and q lay 4096
//   bytes apart and every load waited for the store before it (see ChunkSums);
// - eight rows a visit left to the compiler's vectoriser: 2.4 GB/s, temporaries spilled;
// - eight rows a visit in explicit vectors: this file.
//
// Nothing here may call an inline function with external linkage (std:: included): the linker is
// free to keep the copy compiled for the widest instruction set.

namespace {

// ---------------------------------------------------------------- vectors and widening

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

inline FloatVector widen_vector(const float* from) { return load<FloatVector>(from); }
inline DoubleVector widen_vector(const double* from) { return load<DoubleVector>(from); }
inline FloatVector widen_vector(const BFloat16* from) {
  const auto bits = __builtin_convertvector(load<HalfOfShorts>(from), BitsVector);
  return reinterpret_cast<FloatVector>(bits << 16);
}
inline FloatVector widen_vector(const Half* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<FloatVector>(_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(from)));
#elif defined(__F16C__)
  return reinterpret_cast<FloatVector>(_mm256_cvtph_ps(load<__m128i>(from)));
#else
  typedef int32_t IntVector __attribute__((vector_size(kVectorBytes)));
  const auto bits = __builtin_convertvector(load<HalfOfShorts>(from), BitsVector);
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
  return __builtin_convertvector(load<HalfOfFloats>(from), DoubleVector);
}

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};

// ---------------------------------------------------------------- summing a chunk

// Pivot and sums of one chunk on one tile. The padding keeps the same column of the three arrays
// apart modulo 4096 bytes: a load that follows a store at such a distance waits for it.
template <typename Accumulator>
struct ChunkSums {
  static constexpr int64_t kPadded = kTileColumns + 1344 / static_cast<int64_t>(sizeof(float));
  alignas(64) Accumulator pivot[kPadded];
  alignas(64) Accumulator t[kPadded];
  alignas(64) Accumulator q[kPadded];
};

// Rows are visited in class order, which no hardware prefetcher can guess: the first bytes of each
// row are asked for kRowsAhead rows early, and from there on the hardware follows.
constexpr int64_t kRowsAhead = 12;
constexpr int64_t kBytesAhead = 512;
constexpr int64_t kCacheLine = 64;

// Rows of the chunk as pointers to their first column of the tile, unit column stride; beyond
// num_rows, the rows that come next.
template <typename T>
struct ChunkRows {
  const T* row[kChunkRows + kRowsAhead];
  int64_t num_rows;
  int64_t num_rows_ahead;  // <= kRowsAhead
  int64_t num_columns;
};

template <typename T>
inline void prefetch_rows(const ChunkRows<T>& chunk, int64_t begin, int64_t end) {
  const int64_t known = chunk.num_rows + chunk.num_rows_ahead;
  const int64_t row_bytes = chunk.num_columns * static_cast<int64_t>(sizeof(T));
  const int64_t bytes = row_bytes < kBytesAhead ? row_bytes : kBytesAhead;
  for (int64_t i = begin; i < end && i < known; ++i) {
    const char* row = reinterpret_cast<const char*>(chunk.row[i]);
    for (int64_t offset = 0; offset < bytes; offset += kCacheLine) {
      __builtin_prefetch(row + offset);
    }
  }
}

// Sums kRows values and their squares pair by pair, overwriting both.
template <int kRows, typename Value>
inline void join_rows(Value* d, Value* square) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) square[r] = d[r] * d[r];
#pragma GCC unroll 8
  for (int step = 1; step < kRows; step *= 2) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r += 2 * step) {
      d[r] += d[r + step];
      square[r] += square[r + step];
    }
  }
}

// Adds kRows rows to the sums; the first rows of a chunk set them, and the pivot.
template <int kRows, bool kFirst, typename T, typename Accumulator>
inline void add_rows(const T* const* rows, ChunkSums<Accumulator>& sums, int64_t num_columns) {
  using Vector = decltype(widen_vector(rows[0]));
  constexpr int kWidth = sizeof(Vector) / sizeof(Accumulator);
  const T* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = rows[r];
  int64_t j = 0;
  for (; j + kWidth <= num_columns; j += kWidth) {
    const Vector pivot = kFirst ? widen_vector(row[0] + j) : load<Vector>(sums.pivot + j);
    Vector d[kRows];
    Vector square[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) d[r] = widen_vector(row[r] + j) - pivot;
    join_rows<kRows>(d, square);
    if (kFirst) store(sums.pivot + j, pivot);
    store(sums.t + j, kFirst ? d[0] : load<Vector>(sums.t + j) + d[0]);
    store(sums.q + j, kFirst ? square[0] : load<Vector>(sums.q + j) + square[0]);
  }
  for (; j < num_columns; ++j) {
    const Accumulator pivot = kFirst ? widen(row[0][j]) : sums.pivot[j];
    Accumulator d[kRows];
    Accumulator square[kRows];
    for (int r = 0; r < kRows; ++r) d[r] = widen(row[r][j]) - pivot;
    join_rows<kRows>(d, square);
    if (kFirst) sums.pivot[j] = pivot;
    sums.t[j] = kFirst ? d[0] : sums.t[j] + d[0];
    sums.q[j] = kFirst ? square[0] : sums.q[j] + square[0];
  }
}

template <int kRows, typename T, typename Accumulator>
inline int64_t add_group(const ChunkRows<T>& chunk, int64_t i, ChunkSums<Accumulator>& sums) {
  prefetch_rows(chunk, i + kRowsAhead, i + kRowsAhead + kRows);
  if (i == 0) {
    add_rows<kRows, true>(chunk.row, sums, chunk.num_columns);
  } else {
    add_rows<kRows, false>(chunk.row + i, sums, chunk.num_columns);
  }
  return i + kRows;
}

template <typename T, typename Accumulator>
void sum_chunk(const ChunkRows<T>& chunk, ChunkSums<Accumulator>& sums) {
  int64_t i = 0;
  while (i + 8 <= chunk.num_rows) i = add_group<8>(chunk, i, sums);
  if (i + 4 <= chunk.num_rows) i = add_group<4>(chunk, i, sums);
  if (i + 2 <= chunk.num_rows) i = add_group<2>(chunk, i, sums);
  if (i < chunk.num_rows) add_group<1>(chunk, i, sums);
}

// Whether float32 sums cannot be trusted, so that the chunk is summed again in double:
// - the pivot is an outlier: of q, less than an eighth is left after the subtraction t^2 / m, and
//   the rounding of q would be magnified by more than 8;
// - squares overflow (deviations above 1.8e19), or are so small that their lost bits count:
//   Q < 2^-80 is where 2^-24 Q / 8 meets kChunkRows * kTileColumns * 2^-126. Constant tiles too.
// The sums run in kCheckLanes interleaved lanes of float, an order every vector width can follow.
constexpr int kCheckLanes = 16;

inline bool needs_double(const ChunkSums<float>& sums, int64_t num_rows, int64_t num_columns) {
  float q[kCheckLanes] = {};
  float t2[kCheckLanes] = {};
  int64_t j = 0;
  {
    constexpr int kVectors = kCheckLanes / kFloats;
    FloatVector qs[kVectors] = {};
    FloatVector t2s[kVectors] = {};
    for (; j + kCheckLanes <= num_columns; j += kCheckLanes) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const FloatVector t = load<FloatVector>(sums.t + j + v * kFloats);
        qs[v] += load<FloatVector>(sums.q + j + v * kFloats);
        t2s[v] += t * t;
      }
    }
    __builtin_memcpy(q, qs, sizeof q);
    __builtin_memcpy(t2, t2s, sizeof t2);
  }
  for (int u = 0; j + u < num_columns; ++u) {
    q[u] += sums.q[j + u];
    t2[u] += sums.t[j + u] * sums.t[j + u];
  }
  for (int half = kCheckLanes / 2; half > 0; half /= 2) {
    for (int u = 0; u < half; ++u) {
      q[u] += q[u + half];
      t2[u] += t2[u + half];
    }
  }
  const float m2 = q[0] - t2[0] / static_cast<float>(num_rows);
  return !(m2 >= 0.125f * q[0] && q[0] >= 0x1p-80f && q[0] <= 0x1.fffffep127f);
}
inline bool needs_double(const ChunkSums<double>&, int64_t, int64_t) { return false; }

// The rare second look: plain and in row order.
template <typename T>
void sum_chunk_in_double(const ChunkRows<T>& chunk, ChunkSums<double>& sums) {
  for (int64_t j = 0; j < chunk.num_columns; ++j) {
    sums.pivot[j] = static_cast<double>(widen(chunk.row[0][j]));
    sums.t[j] = 0;
    sums.q[j] = 0;
  }
  for (int64_t i = 0; i < chunk.num_rows; ++i) {
    for (int64_t j = 0; j < chunk.num_columns; ++j) {
      const double d = static_cast<double>(widen(chunk.row[i][j])) - sums.pivot[j];
      sums.t[j] += d;
      sums.q[j] += d * d;
    }
  }
}

// ---------------------------------------------------------------- merging

// Columns of a finished chunk merged into (n, mean); Value is double or DoubleVector, `growth` the
// growth of the sum of squares.
template <bool kFirst, typename Value>
inline void merge_columns(Value pivot, Value t, Value q, double inverse_rows,
                          const MergeWeights& weights, Value& mean, Value& growth) {
  const Value of_chunk = chunk_mean(pivot, t, inverse_rows);
  const Value m2 = chunk_sumsq(q, t, inverse_rows);
  if (kFirst) {
    mean = of_chunk;
    growth += m2;
  } else {
    const Value delta = of_chunk - mean;
    mean += delta * weights.mean_weight;
    growth += m2 + delta * delta * weights.sumsq_weight;
  }
}

template <bool kFirst, typename Accumulator>
void merge_chunk(const ChunkSums<Accumulator>& sums, int64_t m, int64_t n, int64_t num_columns,
                 double* mean, double* lanes) {
  constexpr int kVectors = kLanes / kDoubles;
  const double inverse_rows = 1.0 / static_cast<double>(m);
  const MergeWeights weights = merge_weights(n, m);
  DoubleVector growth[kVectors];
  __builtin_memcpy(growth, lanes, sizeof growth);
  int64_t j = 0;
  for (; j + kLanes <= num_columns; j += kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t column = j + v * kDoubles;
      auto mean_vector = load<DoubleVector>(mean + column);
      merge_columns<kFirst>(load_doubles(sums.pivot + column), load_doubles(sums.t + column),
                            load_doubles(sums.q + column), inverse_rows, weights, mean_vector,
                            growth[v]);
      store(mean + column, mean_vector);
    }
  }
  __builtin_memcpy(lanes, growth, sizeof growth);
  for (int u = 0; j + u < num_columns; ++u) {
    merge_columns<kFirst, double>(sums.pivot[j + u], sums.t[j + u], sums.q[j + u], inverse_rows,
                                  weights, mean[j + u], lanes[u]);
  }
}

template <typename Accumulator>
void merge_chunk(const ChunkSums<Accumulator>& sums, int64_t m, int64_t n, int64_t num_columns,
                 double* mean, double* lanes) {
  if (n == 0) {
    merge_chunk<true>(sums, m, n, num_columns, mean, lanes);
  } else {
    merge_chunk<false>(sums, m, n, num_columns, mean, lanes);
  }
}

template <typename T>
void sum_and_merge_chunk(const ChunkRows<T>& chunk, int64_t n, double* mean, double* lanes) {
  ChunkSums<typename AccumulatorOf<T>::type> sums;
  sum_chunk(chunk, sums);
  if (chunk.num_rows > 1 && needs_double(sums, chunk.num_rows, chunk.num_columns)) {
    ChunkSums<double> precise;
    sum_chunk_in_double(chunk, precise);
    merge_chunk(precise, chunk.num_rows, n, chunk.num_columns, mean, lanes);
  } else {
    merge_chunk(sums, chunk.num_rows, n, chunk.num_columns, mean, lanes);
  }
}

// Copies a tile of rows with any column stride into contiguous staging.
template <typename T>
void stage_rows(const RunOfRows& run, int64_t begin, int64_t num_rows, T* __restrict staging) {
  for (int64_t i = 0; i < num_rows; ++i) {
    const T* from = static_cast<const T*>(run.data) + run.rows[begin + i] * run.row_stride +
                    run.first_column * run.column_stride;
    for (int64_t j = 0; j < run.num_columns; ++j) {
      staging[i * run.num_columns + j] = from[j * run.column_stride];
    }
  }
}

template <typename T>
double merge_run(const RunOfRows& run, int64_t n, double* mean, void* staging_buffer) {
  T* staging = static_cast<T*>(staging_buffer);
  const T* data = static_cast<const T*>(run.data);
  double lanes[kLanes] = {};
  for (int64_t begin = 0; begin < run.num_rows; begin += kChunkRows) {
    ChunkRows<T> chunk;
    const int64_t left = run.num_rows - begin;
    chunk.num_rows = left < kChunkRows ? left : kChunkRows;
    chunk.num_columns = run.num_columns;
    chunk.num_rows_ahead = 0;
    if (run.column_stride == 1) {
      const int64_t rows_after = left + run.num_rows_after - chunk.num_rows;
      chunk.num_rows_ahead = rows_after < kRowsAhead ? rows_after : kRowsAhead;
      for (int64_t i = 0; i < chunk.num_rows + chunk.num_rows_ahead; ++i) {
        chunk.row[i] = data + run.rows[begin + i] * run.row_stride + run.first_column;
      }
    } else {
      stage_rows(run, begin, chunk.num_rows, staging);
      for (int64_t i = 0; i < chunk.num_rows; ++i) chunk.row[i] = staging + i * run.num_columns;
    }
    sum_and_merge_chunk(chunk, n, mean, lanes);
    n += chunk.num_rows;
  }
  return fold_lanes(lanes);
}

double merge_means(const double* other_mean, int64_t m, int64_t n, double* mean,
                   int64_t num_columns) {
  if (n == 0) {
    __builtin_memcpy(mean, other_mean, sizeof(double) * static_cast<uint64_t>(num_columns));
    return 0.0;
  }
  const MergeWeights weights = merge_weights(n, m);
  double lanes[kLanes] = {};
  for (int64_t j = 0; j < num_columns; ++j) {
    const double delta = other_mean[j] - mean[j];
    mean[j] += delta * weights.mean_weight;
    lanes[j % kLanes] += delta * delta * weights.sumsq_weight;
  }
  return fold_lanes(lanes);
}

}  // namespace

// In the order of FeatureType.
const Kernels kKernels = {
    {&merge_run<float>, &merge_run<double>, &merge_run<Half>, &merge_run<BFloat16>}, &merge_means};
