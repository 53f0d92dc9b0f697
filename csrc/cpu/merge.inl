// Merging finished chunks, and finished means, in double. Part of kernels.inl, compiled once per
// instruction set. Sums over columns follow the trees of moments.h.

namespace {

// Eight neighbouring columns, as many vectors as they take.
struct Octet {
  static constexpr int kVectors = kLanes / kDoubles;
  DoubleVector part[kVectors];

  Octet operator+(const Octet& other) const {
    Octet sum;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum.part[v] = part[v] + other.part[v];
    return sum;
  }
};

// Sum of the eight columns: those four, two and one apart.
inline double fold(const Octet& sum) {
  typedef double Four __attribute__((vector_size(4 * sizeof(double))));
  typedef double Two __attribute__((vector_size(2 * sizeof(double))));
  double lanes[kLanes];
  __builtin_memcpy(lanes, sum.part, sizeof lanes);
  store(lanes, load<Four>(lanes) + load<Four>(lanes + 4));
  store(lanes, load<Two>(lanes) + load<Two>(lanes + 2));
  return lanes[0] + lanes[1];
}

template <int kSums, typename Value>
struct Sums {
  Value value[kSums];
};

// Sums of the kSums values that term(j, kind) returns for column j (kind a double), or for the
// kDoubles columns from j on (kind a vector). Four octets from column j on:
template <int kSums, typename Term>
inline Sums<kSums, Octet> sum_quad(int64_t j, Term&& term) {
  Sums<kSums, Octet> sum;
#pragma GCC unroll 4
  for (int v = 0; v < Octet::kVectors; ++v) {
    Sums<kSums, DoubleVector> octet[4];
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) octet[o] = term(j + o * kLanes + v * kDoubles, DoubleVector{});
#pragma GCC unroll 2
    for (int i = 0; i < kSums; ++i) {
      sum.value[i].part[v] =
          (octet[0].value[i] + octet[1].value[i]) + (octet[2].value[i] + octet[3].value[i]);
    }
  }
  return sum;
}

// Fewer than four octets, up to column `end`, padded with zeros:
template <int kSums, typename Term>
inline Sums<kSums, Octet> sum_rest(int64_t j, int64_t end, Term&& term) {
  double rest[kSums][4][kLanes] = {};
  int64_t u = 0;
  for (; j + u + kDoubles <= end; u += kDoubles) {
    const Sums<kSums, DoubleVector> terms = term(j + u, DoubleVector{});
    for (int i = 0; i < kSums; ++i) store(&rest[i][0][0] + u, terms.value[i]);
  }
  for (; j + u < end; ++u) {
    const Sums<kSums, double> terms = term(j + u, double{});
    for (int i = 0; i < kSums; ++i) rest[i][u / kLanes][u % kLanes] = terms.value[i];
  }
  Sums<kSums, Octet> sum;
  for (int i = 0; i < kSums; ++i) {
    Octet four[4];
    __builtin_memcpy(four, rest[i], sizeof four);
    sum.value[i] = (four[0] + four[1]) + (four[2] + four[3]);
  }
  return sum;
}

// A strip's columns from `begin` to `end`:
template <int kSums, typename Term>
inline Sums<kSums, double> sum_strip(int64_t begin, int64_t end, Term&& term) {
  constexpr int kColumns = 4 * kLanes;
  static_assert(kStripColumns == 4 * kColumns);
  Sums<kSums, Octet> quads[4];
  if (end - begin == kStripColumns) {
#pragma GCC unroll 4
    for (int quad = 0; quad < 4; ++quad) {
      quads[quad] = sum_quad<kSums>(begin + quad * kColumns, term);
    }
  } else {
    for (int quad = 0; quad < 4; ++quad) {
      const int64_t j = begin + quad * kColumns;
      quads[quad] = j + kColumns <= end ? sum_quad<kSums>(j, term)
                    : j < end           ? sum_rest<kSums>(j, end, term)
                                        : Sums<kSums, Octet>{};
    }
  }
  Sums<kSums, double> sums;
#pragma GCC unroll 2
  for (int i = 0; i < kSums; ++i) {
    const Octet sum =
        (quads[0].value[i] + quads[1].value[i]) + (quads[2].value[i] + quads[3].value[i]);
    sums.value[i] = fold(sum);
  }
  return sums;
}

// Calls add(strip, sums of term over its columns) for every strip of a tile.
template <int kSums, typename Term, typename Add>
inline void sum_strips(int64_t num_columns, Term&& term, Add&& add) {
  for (int64_t begin = 0; begin < num_columns; begin += kStripColumns) {
    const int64_t end = begin + kStripColumns < num_columns ? begin + kStripColumns : num_columns;
    add(begin / kStripColumns, sum_strip<kSums>(begin, end, term));
  }
}

inline double load_as(const double* from, double) { return *from; }
inline double load_as(const float* from, double) { return static_cast<double>(*from); }
template <typename T>
inline DoubleVector load_as(const T* from, DoubleVector) {
  return load_doubles(from);
}

// Merges the sums of a chunk of m rows into (n, mean) and adds to growth, a number for each strip,
// what the sums of squares grow by.
template <typename Accumulator>
void merge_chunk(const SumsView<Accumulator>& sums, int64_t m, int64_t num_columns, int64_t n,
                 double* mean, double* growth) {
  const double inverse_rows = 1.0 / static_cast<double>(m);
  if (n == 0) {
    const auto start = [&](int64_t j, auto kind) {
      const auto t = load_as(sums.t + j, kind);
      store(mean + j, chunk_mean(load_as(sums.pivot + j, kind), t, inverse_rows));
      return Sums<1, decltype(kind)>{{chunk_sumsq(load_as(sums.q + j, kind), t, inverse_rows)}};
    };
    sum_strips<1>(num_columns, start, [growth](int64_t strip, const Sums<1, double>& sum) {
      growth[strip] += sum.value[0];
    });
    return;
  }
  const MergeWeights weights = merge_weights(n, m);
  const auto merge = [&](int64_t j, auto kind) {
    const auto t = load_as(sums.t + j, kind);
    const auto old = load_as(mean + j, kind);
    const auto delta = chunk_mean(load_as(sums.pivot + j, kind), t, inverse_rows) - old;
    store(mean + j, old + delta * weights.mean_weight);
    return Sums<2, decltype(kind)>{{chunk_sumsq(load_as(sums.q + j, kind), t, inverse_rows),
                                    delta * delta * weights.sumsq_weight}};
  };
  sum_strips<2>(num_columns, merge, [growth](int64_t strip, const Sums<2, double>& sum) {
    growth[strip] += sum.value[0] + sum.value[1];
  });
}

void merge_means(const double* other_mean, int64_t m, int64_t n, double* mean, int64_t num_columns,
                 double* growth) {
  if (n == 0) {
    __builtin_memcpy(mean, other_mean, sizeof(double) * static_cast<uint64_t>(num_columns));
    return;
  }
  const MergeWeights weights = merge_weights(n, m);
  const auto merge = [&](int64_t j, auto kind) {
    const auto old = load_as(mean + j, kind);
    const auto delta = load_as(other_mean + j, kind) - old;
    store(mean + j, old + delta * weights.mean_weight);
    return Sums<1, decltype(kind)>{{delta * delta * weights.sumsq_weight}};
  };
  sum_strips<1>(num_columns, merge, [growth](int64_t strip, const Sums<1, double>& sum) {
    growth[strip] += sum.value[0];
  });
}

double squared_distance(const double* point, const double* center, int64_t num_columns) {
  double total = 0;
  const auto term = [&](int64_t j, auto kind) {
    auto delta = load_as(point + j, kind);
    if (center != nullptr) delta -= load_as(center + j, kind);
    return Sums<1, decltype(kind)>{{delta * delta}};
  };
  sum_strips<1>(num_columns, term,
                [&](int64_t, const Sums<1, double>& sum) { total += sum.value[0]; });
  return total;
}

}  // namespace
