#pragma once

// A composition and its Tweedie estimate, in one pass over x and the windows:
//
//   eps = compose(windows),   out = (x - sigma eps) / mu
//
// On the CPU `compose` and `linear` take turns at tiles that stay in the cache.

#include "compose.h"
#include "linear.h"

namespace sda_fast::SDA_FAST_VARIANT {

#ifdef SDA_FAST_GPU

// A thread an element, or a quad of a row. weights: those of x and eps in `out`.
template <typename T, typename Weight>
struct ComposeDenoise {
  Compose<T> compose;
  const T* x;
  T* out;
  Weight weights[2];
};

template <typename T, typename Weight>
__global__ void __launch_bounds__(kThreads) compose_denoise_kernel(ComposeDenoise<T, Weight> c) {
  const int64_t total = c.compose.batch * c.compose.length * c.compose.row;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; e < total; e += stride) {
    const T eps = narrow<T>(composed(c.compose, e));
    const Accumulate<T> terms[] = {widen(c.x[e]), widen(eps)};
    c.compose.out[e] = eps;
    c.out[e] = narrow<T>(linear_element(terms, c.weights));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
