#pragma once

// What a kernel of csrc/cuda sees of CUDA when the host's compiler compiles it for the emulator:
// the qualifiers, built-in variables, vector types and device functions that kernels like ours use.
// A kernel that needs another one adds it here, with CUDA's meaning.

#include <bit>
#include <cmath>
#include <cstdint>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// Blocks run one after the other, each on one thread of the system: what is local to that thread
// is shared by the block. The runtime knows where it lies, and poisons it before each block.
#define __shared__ static thread_local

struct uint3 {
  unsigned int x, y, z;
};

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

// Set by the runtime for the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "grid.h"

// Vector types, aligned as CUDA's are: a misaligned one is an error on a GPU and here.

#define SDA_FAST_VECTORS(T, name)                                                \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                             \
  struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }                  \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SDA_FAST_VECTORS(float, float)
SDA_FAST_VECTORS(double, double)
SDA_FAST_VECTORS(int, int)
SDA_FAST_VECTORS(unsigned int, uint)
SDA_FAST_VECTORS(long long, longlong)
#undef SDA_FAST_VECTORS

// Bits

inline int __float_as_int(float a) { return std::bit_cast<int>(a); }
inline float __int_as_float(int a) { return std::bit_cast<float>(a); }
inline unsigned int __float_as_uint(float a) { return std::bit_cast<unsigned int>(a); }
inline float __uint_as_float(unsigned int a) { return std::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return std::bit_cast<long long>(a); }
inline double __longlong_as_double(long long a) { return std::bit_cast<double>(a); }
inline int __popc(unsigned int a) { return std::popcount(a); }
inline int __clz(int a) { return std::countl_zero(static_cast<unsigned int>(a)); }
inline int __ffs(int a) { return __builtin_ffs(a); }

// Arithmetic

inline float __fdividef(float a, float b) { return a / b; }

// Memory

template <typename T>
T __ldg(const T* p) {
  return *p;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

// Atomics: no other thread runs in between. They return what was there before.

namespace sda_fast::emulate {

template <typename T, typename F>
T replace(T* p, F f) {
  const T before = *p;
  *p = f(before);
  return before;
}

}  // namespace sda_fast::emulate

template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> a) {
  return sda_fast::emulate::replace(p, [a](T b) { return b + a; });
}
template <typename T>
T atomicMin(T* p, std::type_identity_t<T> a) {
  return sda_fast::emulate::replace(p, [a](T b) { return b < a ? b : a; });
}
template <typename T>
T atomicMax(T* p, std::type_identity_t<T> a) {
  return sda_fast::emulate::replace(p, [a](T b) { return b > a ? b : a; });
}
template <typename T>
T atomicExch(T* p, std::type_identity_t<T> a) {
  return sda_fast::emulate::replace(p, [a](T) { return a; });
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> a) {
  return sda_fast::emulate::replace(p, [=](T b) { return b == expected ? a : b; });
}

// The block and the warp. `where` names the call in what the emulator reports.

#define SDA_FAST_WHERE std::source_location where = std::source_location::current()

inline void __syncthreads(SDA_FAST_WHERE) { sda_fast::emulate::barrier(where); }

inline void __syncwarp(unsigned int mask = 0xFFFFFFFFu, SDA_FAST_WHERE) {
  sda_fast::emulate::exchange(mask, 0, where);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, SDA_FAST_WHERE) {
  return sda_fast::emulate::exchange(mask, predicate != 0, where).ballot();
}
inline int __any_sync(unsigned int mask, int predicate, SDA_FAST_WHERE) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned int mask, int predicate, SDA_FAST_WHERE) {
  return __ballot_sync(mask, predicate == 0, where) == 0;
}

namespace sda_fast::emulate {

inline int lane() {
  const unsigned int row = threadIdx.y + blockDim.y * threadIdx.z;
  return static_cast<int>((threadIdx.x + blockDim.x * row) % warpSize);
}

// The value of lane `source` of the warp; lanes beyond a segment of `width` give one's own.
template <typename T>
T shuffle(unsigned int mask, T value, int source, bool within, std::source_location where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const Lanes& lanes = exchange(mask, std::bit_cast<Word>(value), where);
  return std::bit_cast<T>(static_cast<Word>(lanes.of(within ? source : lane(), where)));
}

}  // namespace sda_fast::emulate

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source, int width = warpSize, SDA_FAST_WHERE) {
  const int first = sda_fast::emulate::lane() & ~(width - 1);
  return sda_fast::emulate::shuffle(mask, value, first + (source & (width - 1)), true, where);
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize,
                 SDA_FAST_WHERE) {
  const int lane = sda_fast::emulate::lane(), source = lane - static_cast<int>(delta);
  return sda_fast::emulate::shuffle(mask, value, source, source >= (lane & ~(width - 1)), where);
}
template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize,
                   SDA_FAST_WHERE) {
  const int lane = sda_fast::emulate::lane(), source = lane + static_cast<int>(delta);
  return sda_fast::emulate::shuffle(mask, value, source, source <= (lane | (width - 1)), where);
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int bits, int width = warpSize, SDA_FAST_WHERE) {
  const int lane = sda_fast::emulate::lane(), source = lane ^ bits;
  return sda_fast::emulate::shuffle(mask, value, source, source <= (lane | (width - 1)), where);
}

#undef SDA_FAST_WHERE
