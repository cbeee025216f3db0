#include <torch/csrc/stable/library.h>

#include "fields.h"
#include "loops.h"
#include "parallel.h"

namespace sda_fast::cpu {
namespace {

Tensor run(const std::optional<Tensor>& cotangent, const Tensor& x,
           const std::optional<int64_t>& activation, const std::vector<int64_t>& padding,
           const std::optional<Tensor>& bias) {
  const ActivationPadOperands of(cotangent, x, activation, padding, bias);
  const Tensor out = allocate_padded(x, of.padded);

  dispatch(x, [&]<typename T>(T) {
    const auto args = of.arguments<T>(cotangent, x, out);
    for_items(out.numel() > 0 ? x.size(0) * x.size(2) : 0, x.size(1) * x.size(3),
              [&](int64_t begin, int64_t end) { fields_of<T>().activation_pad(args, begin, end); });
  });
  return out;
}

}  // namespace

Tensor activation_pad(const Tensor& x, std::optional<int64_t> activation,
                      const std::vector<int64_t>& padding, const std::optional<Tensor>& bias) {
  return run(std::nullopt, x, activation, padding, bias);
}

Tensor activation_pad_vjp(const Tensor& cotangent, const Tensor& x,
                          std::optional<int64_t> activation, const std::vector<int64_t>& padding,
                          const std::optional<Tensor>& bias) {
  return run(cotangent, x, activation, padding, bias);
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("activation_pad", TORCH_BOX(&sda_fast::cpu::activation_pad));
  m.impl("activation_pad_vjp", TORCH_BOX(&sda_fast::cpu::activation_pad_vjp));
}
