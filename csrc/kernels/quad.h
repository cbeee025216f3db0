#pragma once

// Four neighbouring elements of an array, what a thread of a CUDA kernel works on at a time:
// aligned to 16 bytes, so that the device loads and stores that much at once.

#include "config.h"

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
struct alignas(16) Quad {
  T v[4];
};

// The elements at p, of which `left` lie in the array; zero for the others. kAligned: p is aligned
// to 16 bytes.
template <bool kAligned, typename T>
__device__ __forceinline__ Quad<T> load_quad(const T* p, int64_t left) {
  if (kAligned && left >= 4) return *reinterpret_cast<const Quad<T>*>(p);
  Quad<T> a = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k < left) a.v[k] = p[k];
  }
  return a;
}

template <bool kAligned, typename T>
__device__ __forceinline__ void store_quad(T* p, int64_t left, const Quad<T>& a) {
  if (kAligned && left >= 4) {
    *reinterpret_cast<Quad<T>*>(p) = a;
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k < left) p[k] = a.v[k];
  }
}

// Kernels that only move and add elements take either an element or a quad.

template <typename T>
__device__ __forceinline__ Quad<T> operator+(const Quad<T>& a, const Quad<T>& b) {
  return {a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]};
}
template <typename T>
__device__ __forceinline__ Quad<T> operator-(const Quad<T>& a, const Quad<T>& b) {
  return {a.v[0] - b.v[0], a.v[1] - b.v[1], a.v[2] - b.v[2], a.v[3] - b.v[3]};
}
template <typename T>
__device__ __forceinline__ Quad<T> operator-(const Quad<T>& a) {
  return {-a.v[0], -a.v[1], -a.v[2], -a.v[3]};
}

__device__ __forceinline__ void set_nan(float& a) { a = __int_as_float(0x7FC00000); }
__device__ __forceinline__ void set_nan(double& a) { a = __longlong_as_double(0x7FF8000000000000); }
template <typename T>
__device__ __forceinline__ void set_nan(Quad<T>& a) {
#pragma unroll
  for (int k = 0; k < 4; ++k) set_nan(a.v[k]);
}

}  // namespace sda_fast::SDA_FAST_VARIANT
