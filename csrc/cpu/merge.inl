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

template <int kSums, typename Value>
struct Sums {
  Value value[kSums];
};

// Sums octets pair by pair as they come, four at a time: a binary counter whose digits are the sums
// of subtrees.
class OctetTree {
 public:
  static constexpr int kArity = 4;

  void push(const Octet* four) {
    Octet sum = (four[0] + four[1]) + (four[2] + four[3]);
    int level = 0;
    for (unsigned digits = count_++; digits & 1; digits >>= 1) sum = levels_[level++] + sum;
    levels_[level] = sum;
  }

  double total() const {
    Octet sum = {};
    for (int level = 0; count_ >> level != 0; ++level) {
      if (count_ >> level & 1) sum = levels_[level] + sum;
    }
    double lanes[kLanes];
    __builtin_memcpy(lanes, sum.part, sizeof lanes);
    return fold_lanes(lanes);
  }

 private:
  static constexpr int kLevels = 6;
  static_assert(kTileColumns / kLanes / kArity < 1 << kLevels);
  Octet levels_[kLevels] = {};
  unsigned count_ = 0;
};

// Sums over columns of the kSums values that term(j, kind) returns, for column j (kind a double) or
// the kDoubles columns from j on (kind a vector).
template <int kSums, typename Term>
inline Sums<kSums, double> sum_columns(int64_t num_columns, Term&& term) {
  OctetTree tree[kSums];
  Octet four[kSums][OctetTree::kArity];
  constexpr int kColumns = OctetTree::kArity * kLanes;
  int64_t j = 0;
  for (; j + kColumns <= num_columns; j += kColumns) {
#pragma GCC unroll 4
    for (int o = 0; o < OctetTree::kArity; ++o) {
#pragma GCC unroll 4
      for (int v = 0; v < Octet::kVectors; ++v) {
        const Sums<kSums, DoubleVector> terms = term(j + o * kLanes + v * kDoubles, DoubleVector{});
        for (int i = 0; i < kSums; ++i) four[i][o].part[v] = terms.value[i];
      }
    }
    for (int i = 0; i < kSums; ++i) tree[i].push(four[i]);
  }
  if (j < num_columns) {
    double rest[kSums][kColumns] = {};
    int64_t u = 0;
    for (; j + u + kDoubles <= num_columns; u += kDoubles) {
      const Sums<kSums, DoubleVector> terms = term(j + u, DoubleVector{});
      for (int i = 0; i < kSums; ++i) store(rest[i] + u, terms.value[i]);
    }
    for (; j + u < num_columns; ++u) {
      const Sums<kSums, double> terms = term(j + u, double{});
      for (int i = 0; i < kSums; ++i) rest[i][u] = terms.value[i];
    }
    __builtin_memcpy(four, rest, sizeof four);
    for (int i = 0; i < kSums; ++i) tree[i].push(four[i]);
  }
  Sums<kSums, double> sums;
  for (int i = 0; i < kSums; ++i) sums.value[i] = tree[i].total();
  return sums;
}

inline double load_as(const double* from, double) { return *from; }
inline double load_as(const float* from, double) { return static_cast<double>(*from); }
template <typename T>
inline DoubleVector load_as(const T* from, DoubleVector) {
  return load_doubles(from);
}

// Merges the sums of a chunk of m rows into (n, mean); returns the growth of the sum of squares. A
// chunk that is a segment of its own grows it by what is within the chunk and, apart, by its
// distance from the mean: as if the segment were formed first.
template <typename Accumulator>
double merge_chunk(const SumsView<Accumulator>& sums, int64_t m, int64_t n, int64_t num_columns,
                   double* mean, bool apart) {
  const double inverse_rows = 1.0 / static_cast<double>(m);
  if (n == 0) {
    return sum_columns<1>(num_columns,
                          [&](int64_t j, auto kind) {
                            const auto t = load_as(sums.t + j, kind);
                            store(mean + j,
                                  chunk_mean(load_as(sums.pivot + j, kind), t, inverse_rows));
                            return Sums<1, decltype(kind)>{
                                {chunk_sumsq(load_as(sums.q + j, kind), t, inverse_rows)}};
                          })
        .value[0];
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
  if (apart) {
    const Sums<2, double> growth = sum_columns<2>(num_columns, merge);
    return growth.value[0] + growth.value[1];
  }
  return sum_columns<1>(num_columns,
                        [&](int64_t j, auto kind) {
                          const auto growth = merge(j, kind);
                          return Sums<1, decltype(kind)>{{growth.value[0] + growth.value[1]}};
                        })
      .value[0];
}

double merge_means(const double* other_mean, int64_t m, int64_t n, double* mean,
                   int64_t num_columns) {
  if (n == 0) {
    __builtin_memcpy(mean, other_mean, sizeof(double) * static_cast<uint64_t>(num_columns));
    return 0.0;
  }
  const MergeWeights weights = merge_weights(n, m);
  return sum_columns<1>(num_columns,
                        [&](int64_t j, auto kind) {
                          const auto old = load_as(mean + j, kind);
                          const auto delta = load_as(other_mean + j, kind) - old;
                          store(mean + j, old + delta * weights.mean_weight);
                          return Sums<1, decltype(kind)>{{delta * delta * weights.sumsq_weight}};
                        })
      .value[0];
}

double squared_distance(const double* mean, const double* center, int64_t num_columns) {
  return sum_columns<1>(num_columns,
                        [&](int64_t j, auto kind) {
                          auto delta = load_as(mean + j, kind);
                          if (center != nullptr) delta -= load_as(center + j, kind);
                          return Sums<1, decltype(kind)>{{delta * delta}};
                        })
      .value[0];
}

}  // namespace
