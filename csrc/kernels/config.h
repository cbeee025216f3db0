#pragma once

// What every kernel header needs, and nothing of torch or of the C++ library.
//
// The kernels are compiled several times: once per instruction set on the CPU, once by nvcc. Each
// time SDA_FAST_VARIANT names the namespace they live in, so that no two object files define the
// same function differently (the linker would keep one, perhaps one this CPU cannot run). For the
// same reason they use no function of the C++ library: it could be emitted with their flags.

#include <stdint.h>

// The CUDA kernels are what is compiled: by nvcc, or by the host's compiler for the emulator.
#ifdef SDA_FAST_EMULATE
#include "../emulate/cuda.h"
#define SDA_FAST_GPU
#elif defined(__CUDACC__)
#define SDA_FAST_GPU
#endif

#ifndef SDA_FAST_VARIANT
#ifdef SDA_FAST_GPU
#define SDA_FAST_VARIANT cuda
#else
#define SDA_FAST_VARIANT portable
#endif
#endif

#ifdef SDA_FAST_GPU
#define SDA_FAST_FN __host__ __device__ __forceinline__
#else
#define SDA_FAST_FN inline __attribute__((always_inline))
#endif

// The iterations of the next loop are independent, though its arrays may be one and the same (an
// operator in place reads and writes the same element).
#if defined(SDA_FAST_GPU)
#define SDA_FAST_INDEPENDENT
#elif defined(__clang__)
#define SDA_FAST_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SDA_FAST_INDEPENDENT _Pragma("GCC ivdep")
#endif

#if defined(__CUDA_ARCH__) || defined(__clang__)
#define SDA_FAST_UNROLL_10 _Pragma("unroll 10")
#elif defined(__CUDACC__)
#define SDA_FAST_UNROLL_10
#else
#define SDA_FAST_UNROLL_10 _Pragma("GCC unroll 10")
#endif

namespace sda_fast::SDA_FAST_VARIANT {

#ifdef SDA_FAST_GPU

constexpr int kThreads = 256;  // of a block, at most: every kernel is bound by it

// The memory that a launch asks for beside the variables that a kernel declares __shared__.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef SDA_FAST_EMULATE
  return static_cast<T*>(emulate::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

#endif

// a b + c in one rounding where the hardware has it. The kernels are compiled without implicit
// contraction, so that the vectorised body of a loop and its remainder round alike.
SDA_FAST_FN float multiply_add(float a, float b, float c) {
#if defined(SDA_FAST_GPU) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

SDA_FAST_FN double multiply_add(double a, double b, double c) {
#if defined(SDA_FAST_GPU) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

SDA_FAST_FN float square_root(float a) { return __builtin_sqrtf(a); }
SDA_FAST_FN double square_root(double a) { return __builtin_sqrt(a); }

}  // namespace sda_fast::SDA_FAST_VARIANT
