// The kernels, compiled once per instruction set (kernels_generic.cpp, kernels_avx2.cpp,
// kernels_avx512.cpp, kernels_neon.cpp) inside the namespace of that set, with kVectorBytes its
// vector width.
//
// Nothing here may call an inline function with external linkage (std:: included): the linker is
// free to keep the copy compiled for the widest instruction set.

#include "cpu/vectors.inl"
//
#include "cpu/columns.inl"
//
#include "cpu/chunk.inl"
//
#include "cpu/merge.inl"

namespace {

// Rows with any column stride, copied so that columns are neighbours.
template <typename T>
struct StagedRows {
  const char* rows[kChunkRows + kRowsAhead];

  StagedRows(const char* const* from, int64_t num_rows, int64_t first_column, int64_t num_columns,
             int64_t column_stride, void* staging) {
    T* copy = static_cast<T*>(staging);
    for (int64_t i = 0; i < kChunkRows + kRowsAhead; ++i) {
      rows[i] = reinterpret_cast<const char*>(copy);
      if (i >= num_rows) continue;
      const T* row = reinterpret_cast<const T*>(from[i]) + first_column * column_stride;
      for (int64_t j = 0; j < num_columns; ++j) *copy++ = row[j * column_stride];
    }
  }
};

// Merges the finished sums of a chunk, or new ones where these cannot be trusted.
template <typename T>
void check_and_merge(const ChunkRows<T>& chunk, const SumsView<float>& sums, int64_t n,
                     double* mean, double* growth) {
  const int64_t untrusted = find_untrusted(sums, chunk.num_rows, chunk.num_columns);
  if (untrusted == chunk.num_columns) {
    merge_chunk(sums, chunk.num_rows, chunk.num_columns, n, mean, growth);
    return;
  }
  ChunkSums<double> precise;
  redo_in_double(chunk, sums, untrusted, precise.view());
  merge_chunk(precise.view(), chunk.num_rows, chunk.num_columns, n, mean, growth);
}
template <typename T>
void check_and_merge(const ChunkRows<T>& chunk, const SumsView<double>& sums, int64_t n,
                     double* mean, double* growth) {
  merge_chunk(sums, chunk.num_rows, chunk.num_columns, n, mean, growth);
}

template <typename T>
void merge_slice(const SliceOnTile& slice, int64_t n, double* mean, double* growth, void* staging) {
  using Accumulator = typename AccumulatorOf<T>::type;
  ChunkSums<Accumulator> sums;
  for (int64_t begin = 0; begin < slice.num_rows; begin += kChunkRows) {
    const int64_t left = slice.num_rows - begin;
    const int64_t num_rows = left < kChunkRows ? left : kChunkRows;
    const int64_t offset_bytes = slice.first_column * static_cast<int64_t>(sizeof(T));
    ChunkRows<T> chunk = {slice.rows + begin, offset_bytes, num_rows, slice.num_columns};
    if (slice.column_stride == 1) {
      sum_chunk(chunk, sums.view());
      check_and_merge(chunk, sums.view(), n, mean, growth);
    } else {
      const StagedRows<T> staged(slice.rows + begin, num_rows, slice.first_column,
                                 slice.num_columns, slice.column_stride, staging);
      chunk.rows = staged.rows;
      chunk.offset_bytes = 0;
      sum_chunk(chunk, sums.view());
      check_and_merge(chunk, sums.view(), n, mean, growth);
    }
    n += num_rows;
  }
}

// ---------------------------------------------------------------- rows in input order

template <typename T>
SumsView<typename AccumulatorOf<T>::type> sums_of(const OpenChunk& chunk, int64_t num_columns) {
  auto* const sums = static_cast<typename AccumulatorOf<T>::type*>(chunk.sums);
  const int64_t stride = open_chunk_columns(num_columns);
  return {sums, sums + stride, sums + 2 * stride};
}

// A group of eight rows is summed by the kernel of class order, so the bits are the same. What
// differs is when: as soon as it is there, while its rows are in a near cache, and memory is asked
// for in sequence, kBytesAhead of the row that is given. Tried, one thread of a Zen 4, 64 columns
// in ten classes, 13.7 ns a row as it is and 20.4 in class order:
// - reading the rows as they come, for the hardware prefetchers: 17.9, nothing runs beside the
//   reads; the same interleaved with the sums: 34;
// - adding row by row to sums of the class's group: 18.3 to 26, each row waits for the last one's
//   stores.
template <typename T>
int64_t give_rows(const RowsInOrder& rows, int64_t begin, int64_t end, OpenChunk* chunks) {
  constexpr int64_t kBytesAhead = 8192;
  const int64_t row_bytes = rows.num_columns * static_cast<int64_t>(sizeof(T));
  const int64_t bytes_ahead = (kBytesAhead / row_bytes + 1) * rows.row_stride_bytes;
  for (int64_t i = begin; i < end; ++i) {
    const char* row = rows.first_row + i * rows.row_stride_bytes;
    const uintptr_t later = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(bytes_ahead);
    for (int64_t b = 0; b < row_bytes; b += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(later + static_cast<uintptr_t>(b)), 0, 2);
    }
    if (rows.classes[i] < 0) continue;
    OpenChunk& chunk = chunks[rows.classes[i]];
    chunk.rows[chunk.num_rows++] = row;
    if (chunk.num_rows % kGroupRows != 0) continue;
    const ChunkRows<T> all = {chunk.rows, 0, chunk.num_rows, rows.num_columns};
    const auto sums = sums_of<T>(chunk, rows.num_columns);
    if (chunk.num_rows == kGroupRows) {
      add_group<kGroupRows, true, false>(all, 0, sums);
    } else {
      add_group<kGroupRows, false, false>(all, chunk.num_rows - kGroupRows, sums);
    }
    if (chunk.num_rows == kChunkRows) return i + 1;
  }
  return end;
}

template <typename T>
void close_chunk(OpenChunk& chunk, int64_t num_columns, int64_t n, double* mean, double* growth) {
  const ChunkRows<T> all = {chunk.rows, 0, chunk.num_rows, num_columns};
  const auto sums = sums_of<T>(chunk, num_columns);
  if (chunk.num_rows < kGroupRows) {
    add_rest<true, false>(all, 0, sums);
  } else {
    add_rest<false, false>(all, chunk.num_rows / kGroupRows * kGroupRows, sums);
  }
  put_in_order<T>(sums, num_columns);
  check_and_merge(all, sums, n, mean, growth);
  chunk.num_rows = 0;
}

template <typename T, bool kHasScale, bool kHasOffset>
void shift_columns(const void* row_data, int64_t column_stride, const RowShift& shift,
                   void* out_data, int64_t num_columns) {
  using Accumulator = typename AccumulatorOf<T>::type;
  const T* row = static_cast<const T*>(row_data);
  const Accumulator* pivot = static_cast<const Accumulator*>(shift.pivot);
  const Accumulator scale = kHasScale ? static_cast<Accumulator>(*shift.scale) : Accumulator{1};
  const Accumulator* offset = static_cast<const Accumulator*>(shift.offset);
  using Out = std::conditional_t<kHasOffset, T, Accumulator>;
  Out* out = static_cast<Out*>(out_data);
  using Vector = decltype(widen_vector(row));
  constexpr int kWidth = sizeof(Vector) / sizeof(Accumulator);
  int64_t j = 0;
  for (; column_stride == 1 && j + kWidth <= num_columns; j += kWidth) {
    Vector value = widen_vector(row + j) - load<Vector>(pivot + j);
    if constexpr (kHasScale) value = value * scale;
    if constexpr (kHasOffset) value = value + load<Vector>(offset + j);
    store_rounded(out + j, value);
  }
  for (; j < num_columns; ++j) {
    Accumulator value = widen(row[j * column_stride]) - pivot[j];
    if constexpr (kHasScale) value = value * scale;
    if constexpr (kHasOffset) value = value + offset[j];
    store_rounded(out + j, value);
  }
}

template <typename T>
void shift_row(const void* row, int64_t column_stride, const RowShift& shift, void* out,
               int64_t num_columns) {
  if (shift.offset != nullptr) {
    shift_columns<T, true, true>(row, column_stride, shift, out, num_columns);
  } else if (shift.scale != nullptr) {
    shift_columns<T, true, false>(row, column_stride, shift, out, num_columns);
  } else {
    shift_columns<T, false, false>(row, column_stride, shift, out, num_columns);
  }
}

// ---------------------------------------------------------------- labels

// Classes of the rows, -1 for ignore_index; false where there is a bad label.
template <typename Label>
bool read_classes(const Label* labels, int64_t num_rows, int64_t num_classes, int64_t ignore_index,
                  int32_t* __restrict classes) {
  const uint64_t limit = static_cast<uint64_t>(num_classes);
  uint64_t any_bad = 0;
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t label = labels[i];
    const bool in_range = static_cast<uint64_t>(label) < limit;
    const bool is_kept = label != ignore_index;
    any_bad |= static_cast<uint64_t>(!in_range) & static_cast<uint64_t>(is_kept);
    const bool is_class = in_range && is_kept;
    classes[i] = is_class ? static_cast<int32_t>(label) : -1;
  }
  return any_bad == 0;
}

}  // namespace

// In the order of FeatureType.
const Kernels kKernels = {
    {&merge_slice<float>, &merge_slice<double>, &merge_slice<Half>, &merge_slice<BFloat16>},
    {&give_rows<float>, &give_rows<double>, &give_rows<Half>, &give_rows<BFloat16>},
    {&close_chunk<float>, &close_chunk<double>, &close_chunk<Half>, &close_chunk<BFloat16>},
    &merge_means,
    &squared_distance,
    {&shift_row<float>, &shift_row<double>, &shift_row<Half>, &shift_row<BFloat16>},
    {&read_classes<int32_t>, &read_classes<int64_t>}};
