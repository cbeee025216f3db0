#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"

namespace sda_fast::cpu {

Tensor block_mean(const Tensor& x, const std::vector<int64_t>& block) {
  check_state("x", x, 0);
  const BlockSizes sizes("x", x, block, true);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, sizes.means);
  if (out.numel() == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    const BlockMean<T> args = {static_cast<const T*>(states.data_ptr()),
                               static_cast<T*>(out.data_ptr()), sizes.blocks};
    const int64_t line = sizes.blocks.size[sizes.blocks.dims - 1];
    for_items(out.numel() / line, line * sizes.blocks.elements,
              [&](int64_t begin, int64_t end) { loops_of<T>().block_mean(args, begin, end); });
  });
  return out;
}

Tensor block_mean_adjoint(const Tensor& y, const std::vector<int64_t>& block) {
  check_state("y", y, 0);
  const BlockSizes sizes("y", y, block, false);
  const Tensor means = as_contiguous(y);
  const Tensor out = allocate(y, sizes.states);
  if (out.numel() == 0) return out;

  dispatch(y, [&]<typename T>(T) {
    const BlockMean<T> args = {static_cast<const T*>(means.data_ptr()),
                               static_cast<T*>(out.data_ptr()), sizes.blocks};
    const int last = sizes.blocks.dims - 1;
    const int64_t line = sizes.blocks.size[last] * sizes.blocks.block[last];
    for_items(out.numel() / line, line, [&](int64_t begin, int64_t end) {
      loops_of<T>().block_mean_adjoint(args, begin, end);
    });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("block_mean", TORCH_BOX(&sda_fast::cpu::block_mean));
  m.impl("block_mean_adjoint", TORCH_BOX(&sda_fast::cpu::block_mean_adjoint));
}
