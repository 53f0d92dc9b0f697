// squared_distances on the CPU. Parallel axis: points.
#include "squared_distances.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "moments.h"
#include "plan.h"

namespace deeprep {

void squared_distances(const double* points, const double* center, double* out, int64_t num_points,
                       int64_t num_columns, int num_threads) {
  constexpr int64_t kEntriesPerItem = 1 << 16;
  const int64_t points_per_item = std::max<int64_t>(1, kEntriesPerItem / num_columns);
  const int64_t items = ceil_div(num_points, points_per_item);
  const auto distance = active_kernels().squared_distance;
  parallel_for(items, items < 4 ? 1 : num_threads, [&](int64_t item, int) {
    const int64_t end = std::min((item + 1) * points_per_item, num_points);
    for (int64_t k = item * points_per_item; k < end; ++k) {
      out[k] = unify_nan(distance(points + k * num_columns, center, num_columns));
    }
  });
}

}  // namespace deeprep
