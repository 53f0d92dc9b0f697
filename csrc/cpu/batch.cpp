#include "cpu/batch.h"

#include "cpu/simd.h"

namespace deeprep {
namespace {

int choose_workers(const Features& features, int num_threads) {
  // Below, starting a thread costs more than it saves.
  constexpr double kParallelBytes = 2 * 1024 * 1024;
  const double bytes = static_cast<double>(features.num_rows) *
                       static_cast<double>(features.num_columns * size_of(features.type));
  return bytes < kParallelBytes ? 1 : std::max(1, num_threads);
}

}  // namespace

Batch::Batch(const Features& batch_features, const Labels& batch_labels,
             const ClassMoments& batch_state, int num_threads)
    : features(batch_features),
      labels(batch_labels),
      state(batch_state),
      kernels(active_kernels()),
      plan(make_plan(features.num_rows, features.num_columns, features.type, state.num_classes)),
      num_tiles(ceil_div(features.num_columns, kTileColumns)),
      num_workers(choose_workers(features, num_threads)) {}

void Batch::reserve_staging(Worker& worker) const {
  if (features.column_stride == 1) return;
  worker.staging.resize(kChunkRows * kTileColumns * size_of(features.type));
}

void Batch::reserve_rows(Worker& worker, int64_t num_rows) const {
  worker.classes.resize(num_rows);
  worker.sorted.reserve(num_rows, state.num_classes);
}

void Batch::reserve_chunks(Worker& worker) const {
  worker.classes.resize(plan.block_rows);
  worker.chunks.resize(state.num_classes);
  const int64_t bytes = open_chunk_bytes(features.num_columns, features.type);
  worker.sums.reset(new unsigned char[state.num_classes * bytes]);
  for (int64_t k = 0; k < state.num_classes; ++k) {
    worker.chunks[k].num_rows = 0;
    worker.chunks[k].sums = worker.sums.get() + k * bytes;
  }
}

bool Batch::read_classes(int64_t first_row, int64_t num_rows, Worker& worker) const {
  return visit_labels(labels.data, labels.type, [&](const auto* values) {
    return kernels.read_classes(values + first_row, num_rows, state.num_classes,
                                labels.ignore_index, worker.classes.data());
  });
}

bool Batch::sort_rows(int64_t first_row, int64_t num_rows, Worker& worker) const {
  if (!read_classes(first_row, num_rows, worker)) return false;
  const int64_t row_stride_bytes = features.row_stride * size_of(features.type);
  const char* row = static_cast<const char*>(features.data) + first_row * row_stride_bytes;
  worker.sorted.sort(worker.classes.data(), row, row_stride_bytes, num_rows);
  return true;
}

void Batch::merge_rows(const SortedRows& sorted, int64_t begin, int64_t end, int64_t tile,
                       int64_t n, double* mean, double* growth, Worker& worker) const {
  const SliceOnTile slice = {sorted.rows.data() + begin, end - begin, features.column_stride,
                             tile * kTileColumns, tile_columns(tile)};
  kernels.merge_slice[static_cast<int>(features.type)](slice, n, mean, growth,
                                                       worker.staging.data());
}

void Batch::merge_segments(const Segment& first, int64_t tile) const {
  if (first.mean == nullptr) return;
  const int64_t num_columns = tile_columns(tile);
  const int64_t num_strips = ceil_div(num_columns, kStripColumns);
  int64_t n = state.counts[first.class_index];
  double total[kTileStrips] = {};
  for (const Segment* segment = &first; segment != nullptr; segment = segment->next) {
    double* growth = segment->growth + tile * kTileStrips;
    kernels.merge_means(segment->mean + tile * kTileColumns, segment->num_rows, n,
                        state_mean(first.class_index, tile), num_columns, growth);
    for (int64_t strip = 0; strip < num_strips; ++strip) total[strip] += growth[strip];
    n += segment->num_rows;
  }
  std::copy_n(total, num_strips, first.growth + tile * kTileStrips);
}

void Batch::add_to_state(const Segment& first) const {
  double& sumsq = state.sumsq[first.class_index];
  for (int64_t strip = 0; strip < plan.num_strips; ++strip) sumsq += first.growth[strip];
  if (!is_finite(sumsq)) {
    sumsq = unify_nan(sumsq);
    double* mean = state_mean(first.class_index, 0);
    std::transform(mean, mean + features.num_columns, mean, unify_nan);
  }
  int64_t& count = state.counts[first.class_index];
  for (const Segment* segment = &first; segment != nullptr; segment = segment->next) {
    count += segment->num_rows;
  }
}

}  // namespace deeprep
