#include "langevin.h"

#include <torch/csrc/stable/library.h>

#include "../correction.h"
#include "pages.h"

namespace sda_fast::cpu {
namespace {

// All contiguous; out may be x.
void run(const Correction& of, const Tensor& x, const Tensor& eps, const Tensor& out) {
  if (x.numel() == 0) return;
  dispatch(x, [&]<typename T>(T) {
    const Langevin<T> args = langevin_args<T>(of, x, eps, out);
    langevin_passes(args, [&](double* scratch, int64_t begin, int64_t end) {
      loops_of<T>().langevin_sums(args, scratch, begin, end);
    });
  });
}

}  // namespace

Tensor langevin(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
                int64_t step, int64_t correction, int64_t first_sample) {
  const Correction of(x, eps, sigma, tau, seed, step, correction, first_sample);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, x.sizes());
  run(of, states, as_contiguous(eps), out);
  return out;
}

void langevin_(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
               int64_t step, int64_t correction, int64_t first_sample) {
  const Correction of(x, eps, sigma, tau, seed, step, correction, first_sample);
  InPlace target(x);
  run(of, target.work, target.beside(eps), target.work);
  target.finish();
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("langevin", TORCH_BOX(&sda_fast::cpu::langevin));
  m.impl("langevin_", TORCH_BOX(&sda_fast::cpu::langevin_));
}
