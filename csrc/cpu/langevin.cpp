#include "langevin.h"

#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "pages.h"

namespace sda_fast::cpu {
namespace {

// All contiguous; out may be x.
void run(const Tensor& x, const Tensor& eps, double sigma, double tau, NoiseKey key,
         int64_t first_sample, const Tensor& out) {
  if (x.numel() == 0) return;
  dispatch(x, [&]<typename T>(T) {
    const Langevin<T> args = {static_cast<const T*>(x.data_ptr()),
                              static_cast<const T*>(eps.data_ptr()),
                              static_cast<T*>(out.data_ptr()),
                              x.size(0),
                              size_from(x, 1),
                              sigma,
                              tau,
                              key,
                              static_cast<uint32_t>(first_sample)};
    langevin_passes(args, [&](double* scratch, int64_t begin, int64_t end) {
      loops_of<T>().langevin_sums(args, scratch, begin, end);
    });
  });
}

}  // namespace

Tensor langevin(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
                int64_t step, int64_t correction, int64_t first_sample) {
  check_state("x", x, 1);
  check_like("eps", eps, "x", x);
  const NoiseKey key = check_noise(x, seed, step, correction, first_sample);
  const Tensor states = as_contiguous(x);
  const Tensor out = allocate(x, x.sizes());
  run(states, as_contiguous(eps), sigma, tau, key, first_sample, out);
  return out;
}

void langevin_(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
               int64_t step, int64_t correction, int64_t first_sample) {
  check_state("x", x, 1);
  check_like("eps", eps, "x", x);
  const NoiseKey key = check_noise(x, seed, step, correction, first_sample);
  InPlace target(x);
  run(target.work, target.beside(eps), sigma, tau, key, first_sample, target.work);
  target.finish();
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("langevin", TORCH_BOX(&sda_fast::cpu::langevin));
  m.impl("langevin_", TORCH_BOX(&sda_fast::cpu::langevin_));
}
