#include "../kernels/activation_pad.h"

#include <torch/csrc/stable/library.h>

#include "fields.h"

namespace sda_fast::cuda {
namespace {

// Floor: sizeof(T) bytes an element of x, of the cotangent if any, and of the result.
Tensor run(const char* name, const std::optional<Tensor>& cotangent, const Tensor& x,
           const std::optional<int64_t>& activation, const std::vector<int64_t>& padding,
           const std::optional<Tensor>& bias) {
  const ActivationPadOperands of(cotangent, x, activation, padding, bias);
  const Launch launch(x);
  const Tensor out = allocate(x, padded_sizes(of.padded), x.scalar_type());
  if (out.numel() > 0) {
    dispatch(x, [&]<typename T>(T) {
      const auto args = of.arguments<T>(cotangent, x, out);
      const bool packs = in_packs(args.x, args.x_strides, x.size(1)) &&
                         in_packs(args.cotangent, args.cotangent_strides, x.size(1)) &&
                         is_aligned(args.bias);
      launch(name, packs ? activation_pad_kernel<T, true> : activation_pad_kernel<T, false>,
             blocks_of<T>(args.padded), kThreads, 0, args);
    });
  }
  return channels_first(out);
}

}  // namespace

Tensor activation_pad(const Tensor& x, std::optional<int64_t> activation,
                      const std::vector<int64_t>& padding, const std::optional<Tensor>& bias) {
  return run("activation_pad", std::nullopt, x, activation, padding, bias);
}

Tensor activation_pad_vjp(const Tensor& cotangent, const Tensor& x,
                          std::optional<int64_t> activation, const std::vector<int64_t>& padding,
                          const std::optional<Tensor>& bias) {
  return run("activation_pad_vjp", cotangent, x, activation, padding, bias);
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) {
  m.impl("activation_pad", TORCH_BOX(&sda_fast::cuda::activation_pad));
  m.impl("activation_pad_vjp", TORCH_BOX(&sda_fast::cuda::activation_pad_vjp));
}
