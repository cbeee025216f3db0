#pragma once

#include <vector>

#include "loops.h"
#include "parallel.h"

namespace sda_fast::cpu {

// Takes the correction: sums(scratch, begin, end) is the first pass over blocks [begin, end), and
// runs in tiles.
template <typename T, typename Sums>
void langevin_passes(const Langevin<T>& args, const Sums& sums) {
  const Loops<T>& loops = loops_of<T>();
  const int64_t items = args.batch * portable::langevin_blocks(args.size);
  const int64_t block = args.size < portable::kBlock ? args.size : portable::kBlock;
  std::vector<double> scratch(items);
  std::vector<Scales> scales(args.batch);

  for_tiles(items, block, [&](int64_t begin, int64_t end) { sums(scratch.data(), begin, end); });
  loops.langevin_reduce(args, scratch.data(), scales.data());
  for_items(items, 4 * block,
            [&](int64_t begin, int64_t end) { loops.langevin(args, scales.data(), begin, end); });
}

}  // namespace sda_fast::cpu
