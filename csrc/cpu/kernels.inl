// The chunk kernel, compiled once per instruction set (kernels_portable.cpp, kernels_avx2.cpp,
// kernels_avx512.cpp) inside the namespace of that set.
//
// Algorithm: pivoted chunks, see moments.h. Per column the order of additions is fixed (after the
// pivot, rows join in fours: (a + b) + (c + e)) and no operation is contracted, so vector width
// cannot change a bit; the compiler vectorises across columns. Fours because the accumulators t and
// q, which live in the first-level cache, are then loaded and stored a quarter as often, and
// because sums are shallower: at most 20 roundings deep.
//
// Nothing here may call an inline function with external linkage (std:: included): the linker is
// free to keep the copy compiled for the widest instruction set.

namespace {

// Features travel as raw bits for the half types; widening is exact.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
// Branch-free, so that it vectorises: subnormals are an integer times 2^-24, the rest moves its
// exponent from bias 15 to 127, Inf and NaN to all ones.
inline float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent_shift = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const uint32_t normal = (magnitude << 13) + exponent_shift;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  return bits_to_float(sign | (magnitude < 0x0400u ? float_to_bits(subnormal) : normal));
}

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};

// Pivot and sums of one chunk on one tile.
template <typename Accumulator>
struct ChunkSums {
  alignas(64) Accumulator pivot[kTileColumns];
  alignas(64) Accumulator t[kTileColumns];
  alignas(64) Accumulator q[kTileColumns];
};

// Rows of the chunk as pointers to their first column of the tile, unit column stride.
template <typename T>
struct ChunkRows {
  const T* row[kChunkRows];
  int64_t num_rows;
  int64_t num_columns;
};

template <typename T, typename Accumulator>
inline void add_rows(const T* __restrict a, const T* __restrict b, const T* __restrict c,
                     const T* __restrict e, ChunkSums<Accumulator>& sums, int64_t num_columns) {
  for (int64_t j = 0; j < num_columns; ++j) {
    const Accumulator pivot = sums.pivot[j];
    const Accumulator da = static_cast<Accumulator>(widen(a[j])) - pivot;
    const Accumulator db = static_cast<Accumulator>(widen(b[j])) - pivot;
    const Accumulator dc = static_cast<Accumulator>(widen(c[j])) - pivot;
    const Accumulator de = static_cast<Accumulator>(widen(e[j])) - pivot;
    sums.t[j] += (da + db) + (dc + de);
    sums.q[j] += (da * da + db * db) + (dc * dc + de * de);
  }
}

template <typename T, typename Accumulator>
inline void add_row(const T* __restrict a, ChunkSums<Accumulator>& sums, int64_t num_columns) {
  for (int64_t j = 0; j < num_columns; ++j) {
    const Accumulator d = static_cast<Accumulator>(widen(a[j])) - sums.pivot[j];
    sums.t[j] += d;
    sums.q[j] += d * d;
  }
}

template <typename T, typename Accumulator>
void sum_chunk(const ChunkRows<T>& chunk, ChunkSums<Accumulator>& sums) {
  for (int64_t j = 0; j < chunk.num_columns; ++j) {
    sums.pivot[j] = static_cast<Accumulator>(widen(chunk.row[0][j]));
    sums.t[j] = 0;
    sums.q[j] = 0;
  }
  int64_t i = 1;  // the pivot's own contribution is exactly zero
  for (; i + 4 <= chunk.num_rows; i += 4) {
    add_rows(chunk.row[i], chunk.row[i + 1], chunk.row[i + 2], chunk.row[i + 3], sums,
             chunk.num_columns);
  }
  for (; i < chunk.num_rows; ++i) add_row(chunk.row[i], sums, chunk.num_columns);
}

// Whether float32 sums cannot be trusted, so that the chunk is summed again in double:
// - the pivot is an outlier: of q, less than an eighth is left after the subtraction t^2 / m, and
//   the rounding of q (at most 20 additions deep) would be magnified by more than 8;
// - squares overflow (deviations above 1.8e19), or are so small that their lost bits count:
//   Q < 2^-80 is where 2^-24 Q / 8 meets kChunkRows * kTileColumns * 2^-126. Constant tiles too.
// The sums run in kCheckLanes interleaved lanes of float, an order every vector width can follow.
constexpr int kCheckLanes = 16;

inline bool needs_double(const ChunkSums<float>& sums, int64_t num_rows, int64_t num_columns) {
  float q[kCheckLanes] = {};
  float t2[kCheckLanes] = {};
  int64_t j = 0;
  for (; j + kCheckLanes <= num_columns; j += kCheckLanes) {
    for (int u = 0; u < kCheckLanes; ++u) {
      q[u] += sums.q[j + u];
      t2[u] += sums.t[j + u] * sums.t[j + u];
    }
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

// One column of a finished chunk merged into (n, mean): the growth of the sum of squares.
template <bool kFirst, typename Accumulator>
inline double merge_column(const ChunkSums<Accumulator>& sums, int64_t j, double inverse_rows,
                           const MergeWeights& weights, double* __restrict mean) {
  const double t = sums.t[j];
  const double of_chunk = chunk_mean(sums.pivot[j], t, inverse_rows);
  const double m2 = chunk_sumsq(sums.q[j], t, inverse_rows);
  if (kFirst) {
    mean[j] = of_chunk;
    return m2;
  }
  const double delta = of_chunk - mean[j];
  mean[j] += delta * weights.mean_weight;
  return m2 + delta * delta * weights.sumsq_weight;
}

template <bool kFirst, typename Accumulator>
void merge_chunk(const ChunkSums<Accumulator>& sums, int64_t m, int64_t n, int64_t num_columns,
                 double* __restrict mean, double* __restrict lanes) {
  const double inverse_rows = 1.0 / static_cast<double>(m);
  const MergeWeights weights = merge_weights(n, m);
  double growth[kLanes];
  for (int u = 0; u < kLanes; ++u) growth[u] = lanes[u];
  int64_t j = 0;
  for (; j + kLanes <= num_columns; j += kLanes) {
    for (int u = 0; u < kLanes; ++u) {
      growth[u] += merge_column<kFirst>(sums, j + u, inverse_rows, weights, mean);
    }
  }
  for (int u = 0; j + u < num_columns; ++u) {
    growth[u] += merge_column<kFirst>(sums, j + u, inverse_rows, weights, mean);
  }
  for (int u = 0; u < kLanes; ++u) lanes[u] = growth[u];
}

template <typename T, typename Accumulator>
void sum_and_merge_chunk(const ChunkRows<T>& chunk, int64_t n, double* mean, double* lanes) {
  ChunkSums<Accumulator> sums;
  sum_chunk(chunk, sums);
  if (chunk.num_rows > 1 && needs_double(sums, chunk.num_rows, chunk.num_columns)) {
    sum_and_merge_chunk<T, double>(chunk, n, mean, lanes);
  } else if (n == 0) {
    merge_chunk<true>(sums, chunk.num_rows, n, chunk.num_columns, mean, lanes);
  } else {
    merge_chunk<false>(sums, chunk.num_rows, n, chunk.num_columns, mean, lanes);
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
    if (run.column_stride == 1) {
      for (int64_t i = 0; i < chunk.num_rows; ++i) {
        chunk.row[i] = data + run.rows[begin + i] * run.row_stride + run.first_column;
      }
    } else {
      stage_rows(run, begin, chunk.num_rows, staging);
      for (int64_t i = 0; i < chunk.num_rows; ++i) chunk.row[i] = staging + i * run.num_columns;
    }
    sum_and_merge_chunk<T, typename AccumulatorOf<T>::type>(chunk, n, mean, lanes);
    n += chunk.num_rows;
  }
  return fold_lanes(lanes);
}

double merge_means(const double* __restrict other_mean, int64_t m, int64_t n,
                   double* __restrict mean, int64_t num_columns) {
  const MergeWeights weights = merge_weights(n, m);
  double lanes[kLanes] = {};
  for (int64_t j = 0; j < num_columns; ++j) {
    if (n == 0) {
      mean[j] = other_mean[j];
      continue;
    }
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
