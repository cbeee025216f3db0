#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cpu {

Tensor multistep(const Tensor& x, const std::vector<Tensor>& eps, double r,
                 const std::vector<double>& b) {
  return linear(multistep_terms(x, eps, r, b));
}

void multistep_(const Tensor& x, const std::vector<Tensor>& eps, double r,
                const std::vector<double>& b) {
  linear_("x", multistep_terms(x, eps, r, b));
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("multistep", TORCH_BOX(&sda_fast::cpu::multistep));
  m.impl("multistep_", TORCH_BOX(&sda_fast::cpu::multistep_));
}
