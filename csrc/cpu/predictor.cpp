#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cpu {

Tensor predictor(const Tensor& x, const Tensor& eps, double r, double b) {
  return linear(predictor_terms(x, eps, r, b));
}

void predictor_(const Tensor& x, const Tensor& eps, double r, double b) {
  linear_("x", predictor_terms(x, eps, r, b));
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("predictor", TORCH_BOX(&sda_fast::cpu::predictor));
  m.impl("predictor_", TORCH_BOX(&sda_fast::cpu::predictor_));
}
