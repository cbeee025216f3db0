#include "../kernels/block_mean.h"

#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "launch.h"

namespace sda_fast::cuda {
namespace {

// Whether lines may be worked on in quads; if so, they are counted in them.
template <typename T>
bool in_quads(BlockMean<T>& m) {
  const int last = m.blocks.dims - 1;
  if (m.blocks.block[last] != 1 || m.blocks.size[last] % 4 != 0 || !is_aligned(m.in) ||
      !is_aligned(m.out)) {
    return false;
  }
  m.blocks.size[last] /= 4;
  return true;
}

template <typename T>
BlockMean<Quad<T>> quads_of(const BlockMean<T>& m) {
  return {reinterpret_cast<const Quad<T>*>(m.in), reinterpret_cast<Quad<T>*>(m.out), m.blocks};
}

}  // namespace

// Floor: sizeof(T) bytes an element of x and of y.
Tensor block_mean(const Tensor& x, const std::vector<int64_t>& block) {
  check_state("x", x, 0);
  const BlockSizes sizes("x", x, block, true);
  const Launch launch(x);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, sizes.means, x.scalar_type());
  const int64_t total = out.numel();
  if (total == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    BlockMean<T> args = {static_cast<const T*>(states.data_ptr()), static_cast<T*>(out.data_ptr()),
                         sizes.blocks};
    if (in_quads(args)) {
      launch("block_mean", block_mean_kernel<Quad<T>>, blocks_for(total / 4), kThreads, 0,
             quads_of(args), total / 4);
    } else {
      launch("block_mean", block_mean_kernel<T>, blocks_for(total), kThreads, 0, args, total);
    }
  });
  return out;
}

// Floor: sizeof(T) bytes an element of x and of y.
Tensor block_mean_adjoint(const Tensor& y, const std::vector<int64_t>& block) {
  check_state("y", y, 0);
  const BlockSizes sizes("y", y, block, false);
  const Launch launch(y);
  const Tensor means = as_contiguous(y);
  const Tensor out = allocate(y, sizes.states, y.scalar_type());
  const int64_t total = out.numel();
  if (total == 0) return out;

  dispatch(y, [&]<typename T>(T) {
    BlockMean<T> args = {static_cast<const T*>(means.data_ptr()), static_cast<T*>(out.data_ptr()),
                         sizes.blocks};
    if (in_quads(args)) {
      launch("block_mean_adjoint", block_mean_adjoint_kernel<Quad<T>>, blocks_for(total / 4),
             kThreads, 0, quads_of(args), total / 4);
    } else {
      launch("block_mean_adjoint", block_mean_adjoint_kernel<T>, blocks_for(total), kThreads, 0,
             args, total);
    }
  });
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("block_mean", TORCH_BOX(&sda_fast::cuda::block_mean));
  m.impl("block_mean_adjoint", TORCH_BOX(&sda_fast::cuda::block_mean_adjoint));
}
