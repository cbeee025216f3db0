#pragma once

// What the Langevin correction asks of its arguments, the same on every device.

#include "checks.h"
#include "kernels/langevin.h"

namespace sda_fast {

struct Correction {
  Correction(const Tensor& x, const Tensor& eps, double sigma, double tau, int64_t seed,
             int64_t step, int64_t correction, int64_t first_sample)
      : sigma(sigma), tau(tau), first_sample(static_cast<uint32_t>(first_sample)) {
    check_state("x", x, 1);
    check_like("eps", eps, "x", x);
    key = check_noise(x, seed, step, correction, first_sample);
  }

  double sigma, tau;
  NoiseKey key;
  uint32_t first_sample;
};

// Of tensors that are contiguous; out may be x.
template <typename T>
Langevin<T> langevin_args(const Correction& of, const Tensor& x, const Tensor& eps,
                          const Tensor& out) {
  return {static_cast<const T*>(x.data_ptr()),
          static_cast<const T*>(eps.data_ptr()),
          static_cast<T*>(out.data_ptr()),
          x.size(0),
          size_from(x, 1),
          of.sigma,
          of.tau,
          of.key,
          of.first_sample};
}

}  // namespace sda_fast
