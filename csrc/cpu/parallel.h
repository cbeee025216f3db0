#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#ifdef __SANITIZE_THREAD__
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#endif

namespace sda_fast::cpu {

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer sees neither how torch's threads start nor how they are waited for: the libraries
// that do so are not instrumented. Its tokens are static, as what a thread has captured may be read
// only after it has acquired the first, and is written before that is released. They order what is
// before, in and after a loop, and no two threads within one.
template <typename F>
void parallel(int64_t items, int64_t grain, const F& f) {
  static char start, end;
  const auto body = [&f](int64_t first, int64_t last) {
    __tsan_acquire(&start);
    f(first, last);
    __tsan_release(&end);
  };
  __tsan_release(&start);
  torch::stable::parallel_for(0, items, grain, body);
  __tsan_acquire(&end);
}
#else
template <typename F>
void parallel(int64_t items, int64_t grain, const F& f) {
  torch::stable::parallel_for(0, items, grain, f);
}
#endif

// Runs f(begin, end) over [0, items) on torch's threads, each with at least about 32 k elements:
// starting a thread costs as much as that.
template <typename F>
void for_items(int64_t items, int64_t elements_per_item, const F& f) {
  constexpr int64_t kGrain = 32768;
  if (items == 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_item));
  if (items <= grain) {
    f(int64_t{0}, items);
  } else {
    parallel(items, grain, f);
  }
}

// The same in tiles of about 4096 elements: what a loop writes to a tile is in the cache when the
// next loop reads it.
template <typename F>
void for_tiles(int64_t items, int64_t elements_per_item, const F& f) {
  constexpr int64_t kTileElements = 4096;
  const int64_t tile =
      std::max<int64_t>(1, kTileElements / std::max<int64_t>(1, elements_per_item));
  for_items(items, elements_per_item, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += tile) f(first, std::min(first + tile, end));
  });
}

}  // namespace sda_fast::cpu
