#include <torch/csrc/stable/library.h>

#include <tuple>

#include "fields.h"
#include "loops.h"
#include "parallel.h"

namespace sda_fast::cpu {

std::tuple<Tensor, Tensor> norm_pad(const Tensor& x, const std::optional<Tensor>& shift,
                                    const std::vector<int64_t>& padding,
                                    const std::vector<int64_t>& upsample, double eps) {
  const NormPadOperands of(x, shift, padding, upsample);
  const Tensor out = allocate_padded(x, of.padded);
  const Tensor scale = torch::stable::new_empty(x, of.scale_sizes(), of.type);

  dispatch(x, [&]<typename T>(T) {
    const auto args = of.arguments<T>(x, eps, out, scale);
    for_items(out.numel() > 0 ? x.size(0) * x.size(2) : 0, x.size(1) * x.size(3),
              [&](int64_t begin, int64_t end) { fields_of<T>().norm_pad(args, begin, end); });
  });
  return {out, scale};
}

Tensor norm_pad_vjp(const Tensor& cotangent, const Tensor& normed, const Tensor& scale,
                    const std::optional<Tensor>& residual, const std::vector<int64_t>& padding,
                    const std::vector<int64_t>& upsample) {
  const NormPadVjpOperands of(cotangent, normed, scale, residual, padding, upsample);
  const Tensor out = allocate_padded(normed, of.padded);

  dispatch(normed, [&]<typename T>(T) {
    const auto args = of.arguments<T>(cotangent, normed, residual, out);
    for_items(out.numel() > 0 ? normed.size(0) * normed.size(2) : 0,
              normed.size(1) * normed.size(3),
              [&](int64_t begin, int64_t end) { fields_of<T>().norm_pad_vjp(args, begin, end); });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("norm_pad", TORCH_BOX(&sda_fast::cpu::norm_pad));
  m.impl("norm_pad_vjp", TORCH_BOX(&sda_fast::cpu::norm_pad_vjp));
}
