#pragma once

#include "../windows.h"
#include "launch.h"

namespace sda_fast::cuda {

// Whether the rows of a composition are whole quads, and aligned as such.
template <typename T>
bool has_quads(const Compose<T>& c) {
  return c.row % 4 == 0 && c.batch_stride % 4 == 0 && c.window_stride % 4 == 0 &&
         is_aligned(c.windows) && is_aligned(c.out);
}

template <typename T>
Compose<Quad<T>> in_quads(const Compose<T>& c) {
  return {reinterpret_cast<const Quad<T>*>(c.windows),
          c.start,
          c.weight,
          reinterpret_cast<Quad<T>*>(c.out),
          c.batch,
          c.length,
          c.count,
          c.window,
          c.row / 4,
          c.batch_stride / 4,
          c.window_stride / 4};
}

}  // namespace sda_fast::cuda
