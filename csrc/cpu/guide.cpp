#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace sda_fast::cpu {

Tensor guide(const Tensor& eps, const Tensor& direct, const std::optional<Tensor>& through,
             double mu, double sigma) {
  return linear(guide_terms(eps, direct, through, mu, sigma));
}

void guide_(const Tensor& eps, const Tensor& direct, const std::optional<Tensor>& through,
            double mu, double sigma) {
  linear_("eps", guide_terms(eps, direct, through, mu, sigma));
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("guide", TORCH_BOX(&sda_fast::cpu::guide));
  m.impl("guide_", TORCH_BOX(&sda_fast::cpu::guide_));
}
