// The chunk kernel: sums up to kChunkRows rows of one class on one tile. Part of kernels.inl,
// compiled once per instruction set.
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
// Tried and slower: asking for whole rows before the loop over columns, 1.45 x for rows of 1 KiB;
// asking for every other line, in case the hardware fetches pairs, 1.05 to 1.5 x.

// One chunk on one tile: pointers to the first column of the tile of num_rows rows, and, kRowsAhead
// places behind each, of a row that comes next. Unit column stride.
template <typename T>
struct ChunkRows {
  const char* const* rows;
  int64_t offset_bytes;  // from a row's pointer to the tile
  int64_t num_rows;
  int64_t num_columns;

  const T* row(int64_t i) const { return reinterpret_cast<const T*>(rows[i] + offset_bytes); }
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

template <int kWidth>
struct FloatsOf {
  typedef float type __attribute__((vector_size(kWidth * sizeof(float))));
};
template <int kWidth>
using Floats = typename FloatsOf<kWidth>::type;

// Sum of value(t or q) over up to a strip's columns: columns kCheckLanes apart pair by pair, as
// if padded with zeros, then the lanes.
template <typename Value>
inline float check_sum(const float* from, int64_t num_columns, Value&& value) {
  constexpr int kVectors = kCheckLanes / kFloats;
  constexpr int kHexadecets = kStripColumns / kCheckLanes;
  const int64_t full = num_columns / kCheckLanes;
  float rest[kCheckLanes] = {};
  for (int64_t j = full * kCheckLanes; j < num_columns; ++j) rest[j % kCheckLanes] = from[j];
  FloatVector lanes[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    FloatVector sum[kHexadecets];
#pragma GCC unroll 8
    for (int h = 0; h < kHexadecets; ++h) {
      const float* hexadecet = h == full ? rest : from + h * kCheckLanes;
      sum[h] = h > full ? FloatVector{} : value(load<FloatVector>(hexadecet + v * kFloats));
    }
#pragma GCC unroll 3
    for (int step = 1; step < kHexadecets; step *= 2) {
#pragma GCC unroll 8
      for (int h = 0; h < kHexadecets; h += 2 * step) sum[h] += sum[h + step];
    }
    lanes[v] = sum[0];
  }
  float fold[kCheckLanes];
  __builtin_memcpy(fold, lanes, sizeof fold);
  store(fold, load<Floats<8>>(fold) + load<Floats<8>>(fold + 8));
  store(fold, load<Floats<4>>(fold) + load<Floats<4>>(fold + 4));
  store(fold, load<Floats<2>>(fold) + load<Floats<2>>(fold + 2));
  return fold[0] + fold[1];
}

// Whether the sums of a strip must be redone in double, see moments.h.
inline bool needs_double(const float* t, const float* q, int64_t num_columns, int64_t num_rows) {
  const auto same = [](FloatVector value) { return value; };
  const auto squared = [](FloatVector value) { return value * value; };
  if (num_columns == kStripColumns) {  // a constant to the compiler
    return cannot_trust(check_sum(q, kStripColumns, same), check_sum(t, kStripColumns, squared),
                        num_rows);
  }
  return cannot_trust(check_sum(q, num_columns, same), check_sum(t, num_columns, squared),
                      num_rows);
}

// The rare second look at some columns of a chunk: plain and in row order.
template <typename T>
void sum_chunk_in_double(const ChunkRows<T>& chunk, int64_t begin, int64_t end,
                         const SumsView<double>& sums) {
  for (int64_t j = begin; j < end; ++j) {
    sums.pivot[j] = static_cast<double>(widen(chunk.row(0)[j]));
    sums.t[j] = 0;
    sums.q[j] = 0;
  }
  for (int64_t i = 0; i < chunk.num_rows; ++i) {
    const T* row = chunk.row(i);
    for (int64_t j = begin; j < end; ++j) {
      const double d = static_cast<double>(widen(row[j])) - sums.pivot[j];
      sums.t[j] += d;
      sums.q[j] += d * d;
    }
  }
}

// The sums of a chunk with those columns redone that need it, from column `begin`, the first such,
// on; the rest is widened.
template <typename T>
void redo_in_double(const ChunkRows<T>& chunk, const SumsView<float>& sums, int64_t begin,
                    const SumsView<double>& precise) {
  for (int64_t j = 0; j < chunk.num_columns; j += kStripColumns) {
    const int64_t left = chunk.num_columns - j;
    const int64_t width = left < kStripColumns ? left : kStripColumns;
    if (j >= begin && needs_double(sums.t + j, sums.q + j, width, chunk.num_rows)) {
      sum_chunk_in_double(chunk, j, j + width, precise);
    } else {
      for (int64_t u = j; u < j + width; ++u) {
        precise.pivot[u] = sums.pivot[u];
        precise.t[u] = sums.t[u];
        precise.q[u] = sums.q[u];
      }
    }
  }
}

// First column of the first strip that needs double; num_columns where none does.
inline int64_t find_untrusted(const SumsView<float>& sums, int64_t num_rows, int64_t num_columns) {
  for (int64_t j = 0; num_rows > 1 && j < num_columns; j += kStripColumns) {
    const int64_t left = num_columns - j;
    const int64_t width = left < kStripColumns ? left : kStripColumns;
    if (needs_double(sums.t + j, sums.q + j, width, num_rows)) return j;
  }
  return num_columns;
}

}  // namespace
