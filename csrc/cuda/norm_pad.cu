#include "../kernels/norm_pad.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "fields.h"

namespace sda_fast::cuda {

// Floor: sizeof(T) bytes an element of x and of the result.
std::tuple<Tensor, Tensor> norm_pad(const Tensor& x, const std::optional<Tensor>& shift,
                                    const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& upsample, double eps) {
  const NormPadOperands of(x, shift, padding, upsample);
  const Launch launch(x);
  const Tensor out = allocate(x, padded_sizes(of.padded), x.scalar_type());
  const Tensor scale = allocate(x, of.scale_sizes(), of.type);
  if (out.numel() > 0) {
    dispatch(x, [&]<typename T>(T) {
      const auto args = of.arguments<T>(x, eps, out, scale);
      const bool packs = in_packs(args.x, args.x_strides, x.size(1)) && is_aligned(args.shift);
      launch("norm_pad", packs ? norm_pad_kernel<T, true> : norm_pad_kernel<T, false>,
             blocks_of<T>(args.padded), kThreads, 0, args);
    });
  }
  return {channels_first(out), scale};
}

// Floor: sizeof(T) bytes an element of the cotangent, normed, the residual and the result.
Tensor norm_pad_vjp(const Tensor& cotangent, const Tensor& normed, const Tensor& scale,
                    const std::optional<Tensor>& residual, const std::vector<int64_t>& padding,
                    const std::vector<int64_t>& upsample) {
  const NormPadVjpOperands of(cotangent, normed, scale, residual, padding, upsample);
  const Launch launch(normed);
  const Tensor out = allocate(normed, padded_sizes(of.padded), normed.scalar_type());
  if (out.numel() > 0) {
    dispatch(normed, [&]<typename T>(T) {
      const auto args = of.arguments<T>(cotangent, normed, residual, out);
      const int64_t channels = normed.size(1);
      const bool packs = in_packs(args.cotangent, args.cotangent_strides, channels) &&
                         in_packs(args.normed, args.normed_strides, channels) &&
                         in_packs(args.residual, args.residual_strides, channels);
      launch("norm_pad_vjp", packs ? norm_pad_vjp_kernel<T, true> : norm_pad_vjp_kernel<T, false>,
             blocks_of<T>(args.padded), kThreads, 0, args);
    });
  }
  return channels_first(out);
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("norm_pad", TORCH_BOX(&sda_fast::cuda::norm_pad));
  m.impl("norm_pad_vjp", TORCH_BOX(&sda_fast::cuda::norm_pad_vjp));
}
