#include "../kernels/subsample.h"

#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "launch.h"

namespace sda_fast::cuda {
namespace {

using Numbers = std::vector<int64_t>;

// Whether lines may be moved in quads; if so, they are counted in them.
template <typename T>
bool in_quads(Subsample<T>& s) {
  const int last = s.slices.dims - 1;
  int64_t &shape = s.slices.shape[last], &start = s.slices.start[last];
  int64_t& size = s.slices.size[last];
  if (s.slices.step[last] != 1 || shape % 4 != 0 || start % 4 != 0 || size % 4 != 0 ||
      !is_aligned(s.in) || !is_aligned(s.out)) {
    return false;
  }
  shape /= 4, start /= 4, size /= 4;
  return true;
}

template <typename T>
Subsample<Quad<T>> quads_of(const Subsample<T>& s) {
  return {reinterpret_cast<const Quad<T>*>(s.in), reinterpret_cast<Quad<T>*>(s.out), s.slices};
}

}  // namespace

// Floor: 2 sizeof(T) bytes an element of y; where the line has a step, whole sectors of 32 bytes of
// x are read.
Tensor subsample(const Tensor& x, const Numbers& start, const Numbers& step, const Numbers& size) {
  check_state("x", x, 0);
  const int64_t leading = leading_dims("x", x, "start", start);
  const Numbers shape(x.sizes().begin() + leading, x.sizes().end());
  const Slices slices = slices_of(x, leading, shape, start, step, size);
  const Launch launch(x);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, leading_sizes(x, leading, size), x.scalar_type());
  const int64_t total = out.numel();
  if (total == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    Subsample<T> args = {static_cast<const T*>(states.data_ptr()), static_cast<T*>(out.data_ptr()),
                         slices};
    if (in_quads(args)) {
      launch("subsample", subsample_kernel<Quad<T>>, blocks_for(total / 4), kThreads, 0,
             quads_of(args), total / 4);
    } else {
      launch("subsample", subsample_kernel<T>, blocks_for(total), kThreads, 0, args, total);
    }
  });
  return out;
}

// Floor: sizeof(T) bytes an element of x and of y.
Tensor subsample_adjoint(const Tensor& y, const Numbers& start, const Numbers& step,
                         const Numbers& shape) {
  check_state("y", y, 0);
  const int64_t leading = leading_dims("y", y, "start", start);
  const Numbers size(y.sizes().begin() + leading, y.sizes().end());
  const Slices slices = slices_of(y, leading, shape, start, step, size);
  const Launch launch(y);
  const Tensor observed = as_contiguous(y);
  const Tensor out = allocate(y, leading_sizes(y, leading, shape), y.scalar_type());
  const int64_t total = out.numel();
  if (total == 0) return out;

  dispatch(y, [&]<typename T>(T) {
    Subsample<T> args = {static_cast<const T*>(observed.data_ptr()),
                         static_cast<T*>(out.data_ptr()), slices};
    if (in_quads(args)) {
      launch("subsample_adjoint", subsample_adjoint_kernel<Quad<T>>, blocks_for(total / 4),
             kThreads, 0, quads_of(args), total / 4);
    } else {
      launch("subsample_adjoint", subsample_adjoint_kernel<T>, blocks_for(total), kThreads, 0, args,
             total);
    }
  });
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("subsample", TORCH_BOX(&sda_fast::cuda::subsample));
  m.impl("subsample_adjoint", TORCH_BOX(&sda_fast::cuda::subsample_adjoint));
}
