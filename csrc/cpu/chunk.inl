// The chunk kernel: sums up to kChunkRows rows of one class on one tile and merges them into the
// class's moments. Part of kernels.inl, compiled once per instruction set.
//
// Algorithm: pivoted chunks, see moments.h. Per column the order of additions is fixed (rows join
// in groups of up to eight, pair by pair, and groups one after the other) and no operation is
// contracted, so vector width cannot change a bit. Parallel axis: columns, one vector at a time.
//
// Eight rows join at each visit of the accumulators t and q, which live in the first-level cache:
// they are loaded and stored an eighth as often as features are read, and sums stay shallow (11
// roundings for 64 rows). Variants tried, one core, features in the second-level cache:
// - four rows a visit left to the compiler's vectoriser: 9.5 GB/s, with pivot, t and q 4096 bytes
//   apart, where a load can wait for the store before it (see ChunkSums);
// - eight rows a visit left to the compiler's vectoriser: 2.4 GB/s, temporaries spilled;
// - eight rows a visit in explicit vectors: this file.

namespace {

// ---------------------------------------------------------------- summing a chunk

// Pivot and sums of one chunk, num_columns wide.
template <typename Accumulator>
struct SumsView {
  Accumulator* pivot;
  Accumulator* t;
  Accumulator* q;
};

// Room for them on one tile. The padding keeps the same column of the three arrays apart modulo
// 4096 bytes: a load that follows a store at such a distance waits for it.
template <typename Accumulator>
struct ChunkSums {
  static constexpr int64_t kPadded = kTileColumns + 1344 / sizeof(Accumulator);
  alignas(64) Accumulator pivot[kPadded];
  alignas(64) Accumulator t[kPadded];
  alignas(64) Accumulator q[kPadded];

  SumsView<Accumulator> view() { return {pivot, t, q}; }
};

// Rows are visited in class order, which no hardware prefetcher can guess: while a group of rows is
// summed, the same columns of the rows kRowsAhead later are asked for, into the second-level cache.
// Asking for whole rows before the loop over columns instead made rows of 1 KiB 1.45 x slower.

// One chunk on one tile: pointers to the first column of the tile of num_rows rows, and, kRowsAhead
// places behind each, of a row that comes next. Unit column stride.
template <typename T>
struct ChunkRows {
  const char* const* rows;
  int64_t offset;  // bytes from a row's pointer to the tile
  int64_t num_rows;
  int64_t num_columns;

  const T* row(int64_t i) const { return reinterpret_cast<const T*>(rows[i] + offset); }
};

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
inline void add_rows(const ChunkRows<T>& chunk, int64_t i, const SumsView<Accumulator>& sums) {
  using Vector = decltype(widen_vector(chunk.row(0)));
  constexpr int kWidth = sizeof(Vector) / sizeof(Accumulator);
  const int64_t num_columns = chunk.num_columns;
  const T* row[kRows];
  const T* later[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    row[r] = chunk.row(i + r);
    later[r] = chunk.row(i + r + kRowsAhead);
  }
  int64_t j = 0;
  for (; j + kWidth <= num_columns; j += kWidth) {
    const Vector pivot = kFirst ? widen_vector(row[0] + j) : load<Vector>(sums.pivot + j);
    Vector d[kRows];
    Vector square[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      __builtin_prefetch(later[r] + j, 0, 2);
      d[r] = widen_vector(row[r] + j) - pivot;
    }
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
inline int64_t add_group(const ChunkRows<T>& chunk, int64_t i, const SumsView<Accumulator>& sums) {
  if (i == 0) {
    add_rows<kRows, true>(chunk, i, sums);
  } else {
    add_rows<kRows, false>(chunk, i, sums);
  }
  return i + kRows;
}

template <typename T, typename Accumulator>
void sum_chunk(const ChunkRows<T>& chunk, const SumsView<Accumulator>& sums) {
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

inline bool needs_double(const SumsView<float>& sums, int64_t num_rows, int64_t num_columns) {
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
inline bool needs_double(const SumsView<double>&, int64_t, int64_t) { return false; }

// The rare second look: plain and in row order.
template <typename T>
void sum_chunk_in_double(const ChunkRows<T>& chunk, const SumsView<double>& sums) {
  for (int64_t j = 0; j < chunk.num_columns; ++j) {
    sums.pivot[j] = static_cast<double>(widen(chunk.row(0)[j]));
    sums.t[j] = 0;
    sums.q[j] = 0;
  }
  for (int64_t i = 0; i < chunk.num_rows; ++i) {
    const T* row = chunk.row(i);
    for (int64_t j = 0; j < chunk.num_columns; ++j) {
      const double d = static_cast<double>(widen(row[j])) - sums.pivot[j];
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
void merge_chunk(const SumsView<Accumulator>& sums, int64_t m, int64_t n, int64_t num_columns,
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
void merge_chunk(const SumsView<Accumulator>& sums, int64_t m, int64_t n, int64_t num_columns,
                 double* mean, double* lanes) {
  if (n == 0) {
    merge_chunk<true>(sums, m, n, num_columns, mean, lanes);
  } else {
    merge_chunk<false>(sums, m, n, num_columns, mean, lanes);
  }
}

// Merges the finished sums of a chunk, or new ones where these cannot be trusted.
template <typename T, typename Accumulator>
void check_and_merge_chunk(const ChunkRows<T>& chunk, const SumsView<Accumulator>& sums, int64_t n,
                           double* mean, double* lanes) {
  if (chunk.num_rows > 1 && needs_double(sums, chunk.num_rows, chunk.num_columns)) {
    ChunkSums<double> precise;
    sum_chunk_in_double(chunk, precise.view());
    merge_chunk(precise.view(), chunk.num_rows, n, chunk.num_columns, mean, lanes);
  } else {
    merge_chunk(sums, chunk.num_rows, n, chunk.num_columns, mean, lanes);
  }
}

}  // namespace
