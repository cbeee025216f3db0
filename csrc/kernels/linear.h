#pragma once

// Linear combinations of tensors, each weight rounded once from double:
//
//   out = weights[0] terms[0] + weights[1] terms[1] + ...,
//
// added in that order. out may be any of the terms. The operators that are such:
//
//                 terms                    weights
//   predictor     x, eps                   r, b
//   multistep     x, eps_1, eps_2, ...     r, b_1, b_2, ...
//   denoise       x, eps                   1 / mu, -sigma / mu
//   guide         eps, direct, through     1, -sigma / mu, sigma^2 / mu

#include "number.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast {

constexpr int kMostTerms = 5;

template <typename T>
struct Linear {
  const T* terms[kMostTerms];
  Accumulate<T> weights[kMostTerms];
  T* out;
  int64_t size;
  int count;  // of the terms, at least 2
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

// Of elements or, on a GPU, of quads.
template <int kTerms, typename Element, typename Weight>
SDA_FAST_FN Element linear_element(const Element (&terms)[kTerms], const Weight* weights) {
  Element sum = weights[0] * terms[0];
  SDA_FAST_UNROLL_10
  for (int j = 1; j < kTerms; ++j) sum = multiply_add(weights[j], terms[j], sum);
  return sum;
}

#ifndef SDA_FAST_GPU

template <typename T, typename... Terms>
inline void linear_run(const Accumulate<T>* weights, int64_t n, Narrowed<T> out,
                       const Terms&... terms) {
  SDA_FAST_INDEPENDENT
  for (int64_t k = 0; k < n; ++k) {
    const Accumulate<T> elements[] = {terms[k]...};
    out[k] = linear_element(elements, weights);
  }
  out.store(n);
}

template <typename T, typename... Terms>
inline void linear_runs(const Linear<T>& l, int64_t begin, int64_t end, const Terms*... terms) {
  Accumulate<T> weights[kMostTerms];  // a copy, that no store can change
  for (int j = 0; j < kMostTerms; ++j) weights[j] = l.weights[j];
  for_runs<T>(end - begin, [&](int64_t first, int64_t n) {
    const int64_t i = begin + first;
    linear_run<T>(weights, n, Narrowed<T>(l.out + i), Widened<T>(terms + i, n)...);
  });
}

template <typename T>
inline void linear(const Linear<T>& l, int64_t begin, int64_t end) {
  const T* const* x = l.terms;
  switch (l.count) {
    case 2:
      return linear_runs(l, begin, end, x[0], x[1]);
    case 3:
      return linear_runs(l, begin, end, x[0], x[1], x[2]);
    case 4:
      return linear_runs(l, begin, end, x[0], x[1], x[2], x[3]);
    default:
      return linear_runs(l, begin, end, x[0], x[1], x[2], x[3], x[4]);
  }
}

#else

// kAligned: all arrays are aligned to 16 bytes.

// The results of element i and the next, of which `left` are in the arrays.
template <int kTerms, bool kAligned, typename T>
__device__ __forceinline__ Quad<T> linear_quad(const Linear<T>& l, int64_t i, int64_t left) {
  Quad<Accumulate<T>> terms[kTerms];
#pragma unroll
  for (int j = 0; j < kTerms; ++j) terms[j] = widen(load_quad<kAligned>(l.terms[j] + i, left));
  return narrow<Quad<T>>(linear_element(terms, l.weights));
}

// A thread a quad.
template <typename T, int kTerms, bool kAligned>
__global__ void __launch_bounds__(kThreads) linear_kernel(Linear<T> l) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t quad = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; 4 * quad < l.size;
       quad += stride) {
    const int64_t i = 4 * quad, left = l.size - i;
    store_quad<kAligned>(l.out + i, left, linear_quad<kTerms, kAligned>(l, i, left));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
