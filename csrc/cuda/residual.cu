#include "../kernels/residual.h"

#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "launch.h"

namespace sda_fast::cuda {

// Floor: 2 sizeof(T) bytes an element of the prediction, and y, std and gamma once.
Tensor residual(const Tensor& y, const Tensor& prediction, const Tensor& std, const Tensor& gamma,
                double ratio) {
  const ResidualOperands of(y, prediction, std, gamma);
  const Launch launch(prediction);
  const Tensor out = allocate_like(prediction);
  if (out.numel() == 0) return out;

  dispatch(prediction, [&]<typename T>(T) {
    using Number = Accumulate<T>;
    const Residual<T> args = {static_cast<const Number*>(of.y.data_ptr()),
                              static_cast<const T*>(of.prediction.data_ptr()),
                              static_cast<const Number*>(of.std.data_ptr()),
                              static_cast<const Number*>(of.gamma.data_ptr()),
                              static_cast<T*>(out.data_ptr()),
                              of.batch,
                              of.size,
                              of.std.numel() == 1,
                              of.gamma.numel() == 1,
                              static_cast<Number>(ratio * ratio)};
    const bool aligned = is_aligned(args.y) && is_aligned(args.prediction) &&
                         is_aligned(args.out) && (args.uniform_std || is_aligned(args.std)) &&
                         (args.uniform_gamma || is_aligned(args.gamma)) &&
                         samples_aligned(args.batch, args.size);
    const auto kernel = aligned ? residual_kernel<T, true> : residual_kernel<T, false>;
    launch("residual", kernel, blocks_for(args.batch * ((args.size + 3) / 4)), kThreads, 0, args);
  });
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("residual", TORCH_BOX(&sda_fast::cuda::residual)); }
