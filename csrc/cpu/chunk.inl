// The chunk kernel: sums up to kChunkRows rows of one class on one tile. Part of kernels.inl,
// compiled once per instruction set.
//
// Algorithm: pivoted chunks in groups of eight rows, see moments.h. Per column the order of
// operations is fixed and no operation is contracted but by name, so vector width cannot change a
// bit. Parallel axis: columns, a cache line of features at a time.
//
// A group's sums live in registers; the chunk's t and q, which live in the first-level cache, are
// loaded and stored once a group, an eighth as often as features are read.

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

// Adds the columns from j on that a `Widened` holds, of kRows rows, to the sums; the first rows of
// a chunk set them, and the pivot.
template <typename Widened, int kRows, bool kFirst, typename T, typename Accumulator>
[[gnu::always_inline]] inline void add_columns(const T* const (&row)[kRows], int64_t j,
                                               const SumsView<Accumulator>& sums) {
  constexpr int kParts = Widened::kParts;
  const Widened pivot = kFirst ? widen_columns<Widened>(row[0] + j) : Widened::load(sums.pivot + j);
  Widened t = {};
  Widened q = {};
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const Widened x = widen_columns<Widened>(row[r] + j);
#pragma GCC unroll 8
    for (int v = 0; v < kParts; ++v) {
      const auto d = x.part[v] - pivot.part[v];
      t.part[v] += d;
      q.part[v] = fma(d, d, q.part[v]);
    }
  }
  if (kFirst) {
    pivot.store(sums.pivot + j);
  } else {
    const Widened sum_t = Widened::load(sums.t + j);
    const Widened sum_q = Widened::load(sums.q + j);
#pragma GCC unroll 8
    for (int v = 0; v < kParts; ++v) {
      t.part[v] = sum_t.part[v] + t.part[v];
      q.part[v] = sum_q.part[v] + q.part[v];
    }
  }
  t.store(sums.t + j);
  q.store(sums.q + j);
}

// Adds a group, rows [i, i + kRows). kScattered: visited in class order.
template <int kRows, bool kFirst, bool kScattered, typename T, typename Accumulator>
inline void add_group(const ChunkRows<T>& chunk, int64_t i, const SumsView<Accumulator>& sums) {
  const int64_t num_columns = chunk.num_columns;
  const T* row[kRows];
  const T* later[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    row[r] = chunk.row(i + r);
    if (kScattered) later[r] = chunk.row(i + r + kRowsAhead);
  }
  int64_t j = 0;
  for (; j + Line<T>::kColumns <= num_columns; j += Line<T>::kColumns) {
#pragma GCC unroll 8
    for (int r = 0; kScattered && r < kRows; ++r) __builtin_prefetch(later[r] + j, 0, 2);
    add_columns<Line<T>, kRows, kFirst>(row, j, sums);
  }
  for (; j + OneVector<T>::kColumns <= num_columns; j += OneVector<T>::kColumns) {
    add_columns<OneVector<T>, kRows, kFirst>(row, j, sums);
  }
  for (; j < num_columns; ++j) add_columns<OneColumn<T>, kRows, kFirst>(row, j, sums);
}

template <bool kFirst, bool kScattered, typename T, typename Accumulator>
void add_rest(const ChunkRows<T>& chunk, int64_t i, const SumsView<Accumulator>& sums) {
  switch (chunk.num_rows - i) {
    case 1:
      return add_group<1, kFirst, kScattered>(chunk, i, sums);
    case 2:
      return add_group<2, kFirst, kScattered>(chunk, i, sums);
    case 3:
      return add_group<3, kFirst, kScattered>(chunk, i, sums);
    case 4:
      return add_group<4, kFirst, kScattered>(chunk, i, sums);
    case 5:
      return add_group<5, kFirst, kScattered>(chunk, i, sums);
    case 6:
      return add_group<6, kFirst, kScattered>(chunk, i, sums);
    case 7:
      return add_group<7, kFirst, kScattered>(chunk, i, sums);
  }
}

template <typename T, typename Accumulator>
inline void put_in_order(const SumsView<Accumulator>& sums, int64_t num_columns) {
  in_order<T>(sums.pivot, num_columns);
  in_order<T>(sums.t, num_columns);
  in_order<T>(sums.q, num_columns);
}

// Sums a chunk.
template <typename T, typename Accumulator>
void sum_chunk(const ChunkRows<T>& chunk, const SumsView<Accumulator>& sums) {
  if (chunk.num_rows < kGroupRows) {
    add_rest<true, true>(chunk, 0, sums);
  } else {
    add_group<kGroupRows, true, true>(chunk, 0, sums);
    int64_t i = kGroupRows;
    for (; i + kGroupRows <= chunk.num_rows; i += kGroupRows) {
      add_group<kGroupRows, false, true>(chunk, i, sums);
    }
    add_rest<false, true>(chunk, i, sums);
  }
  put_in_order<T>(sums, chunk.num_columns);
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
