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
    const Residual<T> args = residual_args<T>(of, ratio, out);
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
