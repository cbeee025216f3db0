#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cpu {

Tensor denoise(const Tensor& x, const Tensor& eps, double mu, double sigma) {
  return linear(denoise_terms(x, eps, mu, sigma));
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("denoise", TORCH_BOX(&sda_fast::cpu::denoise));
}
