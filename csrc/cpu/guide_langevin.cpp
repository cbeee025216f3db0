#include <torch/csrc/stable/library.h>

#include "../correction.h"
#include "../terms.h"
#include "langevin.h"

namespace sda_fast::cpu {

void guide_langevin_(const Tensor& x, const Tensor& eps, const Tensor& direct,
                     const std::optional<Tensor>& through, double mu, double sigma, double tau,
                     int64_t seed, int64_t step, int64_t correction, int64_t first_sample) {
  const Correction of(x, eps, sigma, tau, seed, step, correction, first_sample);
  Guided guided(x, eps, direct, through, mu, sigma);
  if (x.numel() == 0) return;

  dispatch(x, [&]<typename T>(T) {
    const Linear<T> guide = linear_args<T>(guided.terms, guided.eps.work);
    const Langevin<T> args = langevin_args<T>(of, guided.x.work, guided.eps.work, guided.x.work);
    const int64_t blocks = portable::langevin_blocks(args.size);
    const auto start = [&](int64_t item) {
      return item / blocks * args.size + item % blocks * portable::kBlock;
    };
    langevin_passes(args, [&](double* scratch, int64_t begin, int64_t end) {
      loops_of<T>().linear(guide, start(begin), start(end));
      loops_of<T>().langevin_sums(args, scratch, begin, end);
    });
  });
  guided.finish();
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("guide_langevin_", TORCH_BOX(&sda_fast::cpu::guide_langevin_));
}
