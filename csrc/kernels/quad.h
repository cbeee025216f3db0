#pragma once

// Four neighbouring elements of an array, what a thread of a CUDA kernel works on at a time, as
// many as the noise is made in. The device loads and stores 16 bytes at once of float and double,
// and 8 of the half types: a warp's accesses still fill whole lines of 128 bytes.

#include "number.h"

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
struct alignas(sizeof(T) < 4 ? 8 : 16) Quad {
  T v[4];
};

}  // namespace sda_fast::SDA_FAST_VARIANT

namespace sda_fast {

template <typename T>
struct Arithmetic<SDA_FAST_VARIANT::Quad<T>> {
  using Type = SDA_FAST_VARIANT::Quad<Accumulate<T>>;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

// The elements at p, of which `left` lie in the array; zero for the others. kAligned: p is aligned
// like a quad.
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

// By value: as a whole a quad is loaded at once, and number by number where it is referred to.
template <typename T>
__device__ __forceinline__ Quad<Accumulate<T>> widen(Quad<T> a) {
  return {widen(a.v[0]), widen(a.v[1]), widen(a.v[2]), widen(a.v[3])};
}
template <typename T>
__device__ __forceinline__ void narrow(const Quad<Accumulate<T>>& a, Quad<T>& to) {
#pragma unroll
  for (int k = 0; k < 4; ++k) narrow(a.v[k], to.v[k]);
}

// Kernels that only move and combine elements take either an element or a quad.

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
template <typename T>
__device__ __forceinline__ Quad<T> operator*(T a, const Quad<T>& b) {
  return {a * b.v[0], a * b.v[1], a * b.v[2], a * b.v[3]};
}
template <typename T>
__device__ __forceinline__ Quad<T> multiply_add(T a, const Quad<T>& b, const Quad<T>& c) {
  return {multiply_add(a, b.v[0], c.v[0]), multiply_add(a, b.v[1], c.v[1]),
          multiply_add(a, b.v[2], c.v[2]), multiply_add(a, b.v[3], c.v[3])};
}

__device__ __forceinline__ void set_nan(BFloat16& a) { a = {0x7FC0}; }
__device__ __forceinline__ void set_nan(Float16& a) { a = {0x7E00}; }
__device__ __forceinline__ void set_nan(float& a) { a = __int_as_float(0x7FC00000); }
__device__ __forceinline__ void set_nan(double& a) { a = __longlong_as_double(0x7FF8000000000000); }
template <typename T>
__device__ __forceinline__ void set_nan(Quad<T>& a) {
#pragma unroll
  for (int k = 0; k < 4; ++k) set_nan(a.v[k]);
}

}  // namespace sda_fast::SDA_FAST_VARIANT
