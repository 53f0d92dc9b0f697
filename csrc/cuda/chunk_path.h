// Which of the two fused passes an update takes, sum_segments.cuh or sum_chunks.cuh, and how many
// teams share the segments.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/strips.cuh"
#include "plan.h"

namespace deeprep::cuda {

// Warps of sum_segments a multiprocessor, from which on it keeps the memory busy.
constexpr int64_t kEnoughWarps = 16;
// Rows of a class, below which most warps of a block of sum_chunks would have none.
constexpr int64_t kLeastChunkRows = 32;

// Classes, above which even one column makes warps enough, and merging takes a kernel more.
constexpr int64_t kMostChunkClasses = 1024;

// Segments are as many as the batch has classes and groups, and where those are few they leave most
// of the chip idle: then chunks are summed side by side. Where classes are many a chunk holds a row
// or two, and eight warps would have nothing to share. The host chooses by the counts that it
// knows; nothing that is computed depends on it.
inline bool use_chunks(int64_t num_rows, int64_t num_columns, FeatureType type, int64_t num_classes,
                       int64_t num_multiprocessors) {
  if (num_classes > kMostChunkClasses || num_rows < kLeastChunkRows * num_classes) return false;
  const Plan plan = make_plan(num_rows, num_columns, type, num_classes);
  const int64_t num_segments =
      std::min(num_rows, num_classes * plan.num_groups) + num_rows / kSegmentRows;
  const int64_t num_threads = num_segments * plan.num_strips * team_size(num_columns);
  return num_threads < kEnoughWarps * kWarpThreads * num_multiprocessors;
}

// Segments of a row or a few, of which a team walks no more than this.
constexpr int64_t kMostPacked = 8;

// Teams of sum_segments. Where a segment has many rows, one each: then it matters most that work is
// handed out as multiprocessors come free. Where it has few, they come at the end of a chain of
// loads, from the segment to its rows' numbers, that a team which walks several waits for only
// once; but as many teams stay as keep every multiprocessor at work.
inline int64_t segment_teams(int64_t num_rows, int64_t num_classes, int64_t num_items,
                             int64_t team_size, int64_t num_multiprocessors) {
  if (num_rows >= kLeastChunkRows * num_classes) return num_items;
  const int64_t enough = kEnoughWarps * num_multiprocessors * (kWarpThreads / team_size);
  return std::min(num_items, std::max(enough, ceil_div(num_items, kMostPacked)));
}

}  // namespace deeprep::cuda
