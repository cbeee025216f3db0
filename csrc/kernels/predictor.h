#pragma once

// The step of the exponential integrator: out = r x + b eps. out may be x.

#include "config.h"

namespace sda_fast {

template <typename T>
struct Predictor {
  const T* x;
  const T* eps;
  T* out;
  int64_t size;
  T r, b;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
SDA_FAST_FN T predictor_element(T x, T eps, T r, T b) {
  return multiply_add(b, eps, r * x);
}

#ifndef __CUDACC__

template <typename T>
inline void predictor(const Predictor<T>& p, int64_t begin, int64_t end) {
  const T *x = p.x, *eps = p.eps;
  const T r = p.r, b = p.b;
  T* out = p.out;
  SDA_FAST_INDEPENDENT
  for (int64_t i = begin; i < end; ++i) out[i] = predictor_element(x[i], eps[i], r, b);
}

#else

template <typename T>
__global__ void predictor_kernel(Predictor<T> p) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.size; i += stride) {
    p.out[i] = predictor_element(p.x[i], p.eps[i], p.r, p.b);
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
