#pragma once

#include "../fields.h"
#include "launch.h"

namespace sda_fast::cuda {

// Whether the channels of every point lie in packs: side by side, and aligned to 16 bytes. An array
// that is not there is none that does not.
template <typename T>
bool in_packs(const T* array, const FieldStrides& s, int64_t channels) {
  if (array == nullptr) return true;
  const bool dense = s.channel == 1 && channels % kPack<T> == 0;
  const bool whole = s.batch % kPack<T> == 0 && s.row % kPack<T> == 0 && s.column % kPack<T> == 0;
  return dense && whole && is_aligned(array);
}

// Thread blocks for a team of lanes a point.
template <typename T>
unsigned int blocks_of(const Padded& p) {
  return blocks_for(p.batch * p.height * p.width, kThreads / team_size(p.channels, kPack<T>));
}

}  // namespace sda_fast::cuda
