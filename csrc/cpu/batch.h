// What the two flows of class_moments share: the batch beside the state that it is merged into, its
// segments, and the scratch of a thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "class_moments.h"
#include "cpu/kernels.h"
#include "cpu/sorted_rows.h"
#include "plan.h"

namespace deeprep {

// A segment of a class (plan.h): chunks merge into it, then it merges into the state.
struct Segment {
  int64_t class_index;
  int64_t num_rows;
  double* mean;    // d wide, while it waits to be merged into the state; null: merged at once
  double* growth;  // what the sum of squares grows by, a number for each strip
  Segment* next;   // of the class; null: none
};

// Scratch of one thread; allocated before anything is written.
struct Worker {
  std::vector<int32_t> classes;        // of a block's rows, -1 where ignored
  SortedRows sorted;                   // the block's rows
  std::vector<unsigned char> staging;  // a tile of a chunk, where column_stride != 1
  // In input order only: a chunk for each class, and its sums.
  std::vector<OpenChunk> chunks;
  std::unique_ptr<unsigned char[]> sums;
};

class Batch {
 public:
  Batch(const Features& features, const Labels& labels, const ClassMoments& state, int num_threads);

  // Allocate a worker's scratch: what it needs to merge rows, and to sort blocks of num_rows.
  void reserve_staging(Worker& worker) const;
  void reserve_rows(Worker& worker, int64_t num_rows) const;

  // The same for blocks that are visited in input order.
  void reserve_chunks(Worker& worker) const;

  // The classes of a block's rows; false where there is a bad label.
  bool read_classes(int64_t first_row, int64_t num_rows, Worker& worker) const;

  // Sorts the rows of a block; false where there is a bad label.
  bool sort_rows(int64_t first_row, int64_t num_rows, Worker& worker) const;

  // Merges rows [begin, end) of sorted ones, of one class and segment, on one tile into
  // (n, mean of that tile).
  void merge_rows(const SortedRows& sorted, int64_t begin, int64_t end, int64_t tile, int64_t n,
                  double* mean, double* growth, Worker& worker) const;

  // Merges the segments of a class, from its first one on, into the state's mean on one tile,
  // unless they were merged at once. The first one's growth is then the growth of all.
  void merge_segments(const Segment& first, int64_t tile) const;

  // Adds rows and growth of a class to the state, once all its tiles are merged.
  void add_to_state(const Segment& first) const;

  int64_t tile_columns(int64_t tile) const {
    return std::min(kTileColumns, features.num_columns - tile * kTileColumns);
  }
  double* state_mean(int64_t class_index, int64_t tile) const {
    return state.means + class_index * features.num_columns + tile * kTileColumns;
  }

  const Features& features;
  const Labels& labels;
  const ClassMoments& state;
  const Kernels& kernels;
  const Plan plan;
  const int64_t num_tiles;
  const int num_workers;
};

// The flows. False where there is a bad label; nothing is written then. May throw std::bad_alloc,
// likewise.
bool merge_one_group(const Batch& batch);
bool merge_several_groups(const Batch& batch);

// Bytes of scratch that the calling thread keeps for its next batch in one group.
int64_t kept_scratch_bytes();

}  // namespace deeprep
