#pragma once

#include "../fields.h"
#include "pages.h"

namespace sda_fast::cpu {

// What a field is padded to, (B, C, H, W) with its channels last.
inline Tensor allocate_padded(const Tensor& beside, const Padded& padded) {
  const std::vector<int64_t> last = padded_sizes(padded);
  const int64_t height = last[1], width = last[2], channels = last[3];
  const std::vector<int64_t> sizes = {last[0], channels, height, width};
  if (last[0] * height * width == 0) return torch::stable::new_empty(beside, sizes);
  return allocate_strided(
      beside, sizes,
      std::vector<int64_t>{height * width * channels, 1, width * channels, channels});
}

}  // namespace sda_fast::cpu
