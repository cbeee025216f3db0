#pragma once

// The Langevin correction, one delta per sample (batch b, elements e):
//
//   delta_b = tau / mean_e eps^2        (0 where the mean is 0: the sample stays as it is)
//   out = x - sigma (delta_b eps + sqrt(2 delta_b) z),   z the stream's normal numbers
//
// out may be x. The mean is summed in blocks of a fixed size, and the blocks' sums in their order
// in double: it does not depend on the number of threads.

#include "philox_normal.h"

namespace sda_fast {

// x, eps, out (batch, size), contiguous.
template <typename T>
struct Langevin {
  const T* x;
  const T* eps;
  T* out;
  int64_t batch, size;
  double sigma, tau;
  NoiseKey key;
  uint32_t first_sample;
};

// What multiplies eps and z in a sample: sigma delta and sigma sqrt(2 delta).
struct Scales {
  double eps, z;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

SDA_FAST_FN Scales langevin_scales(double mean, double sigma, double tau) {
  if (mean == 0.0) return {0.0, 0.0};
  const double delta = tau / mean;
  return {sigma * delta, sigma * square_root(2.0 * delta)};
}

template <typename T>
SDA_FAST_FN T langevin_element(T x, T eps, T z, T scale_eps, T scale_z) {
  return multiply_add(-scale_eps, eps, multiply_add(-scale_z, z, x));
}

#ifndef SDA_FAST_GPU

constexpr int64_t kBlock = 4096;
static_assert(kBlock % kRun == 0);

inline int64_t langevin_blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }

// The sum of squares of n <= kBlock elements, in 32 lanes that are then added as a tree.
template <typename T>
inline double block_square_sum(const T* block, int64_t n) {
  constexpr int kLanes = 32;
  static_assert(kRun % kLanes == 0);
  Accumulate<T> lanes[kLanes] = {};
  for_runs<T>(n, [&](int64_t first, int64_t size) {
    const Widened<T> eps(block + first, size);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      for (int k = 0; k < kLanes; ++k) lanes[k] = multiply_add(eps[i + k], eps[i + k], lanes[k]);
    }
    for (int k = 0; i + k < size; ++k) lanes[k] = multiply_add(eps[i + k], eps[i + k], lanes[k]);
  });

  double sums[kLanes];
  for (int k = 0; k < kLanes; ++k) sums[k] = static_cast<double>(lanes[k]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) sums[k] += sums[k + width];
  }
  return sums[0];
}

// First pass: scratch[item] = the sum over block item, of the batch * blocks there are.
template <typename T>
inline void langevin_sums(const Langevin<T>& l, double* scratch, int64_t begin, int64_t end) {
  const int64_t blocks = langevin_blocks(l.size);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks, first = item % blocks * kBlock;
    const int64_t n = l.size - first < kBlock ? l.size - first : kBlock;
    scratch[item] = block_square_sum(l.eps + b * l.size + first, n);
  }
}

// Between the passes: the scales of each sample, of its blocks' sums in their order.
template <typename T>
inline void langevin_reduce(const Langevin<T>& l, const double* scratch, Scales* scales) {
  const int64_t blocks = langevin_blocks(l.size);
  for (int64_t b = 0; b < l.batch; ++b) {
    double sum = 0.0;
    for (int64_t k = 0; k < blocks; ++k) sum += scratch[b * blocks + k];
    scales[b] = langevin_scales(sum / static_cast<double>(l.size), l.sigma, l.tau);
  }
}

// Second pass: the update of blocks [begin, end).
template <typename T>
inline void langevin(const Langevin<T>& l, const Scales* scales, int64_t begin, int64_t end) {
  const int64_t blocks = langevin_blocks(l.size);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks, start = item % blocks * kBlock;
    const int64_t stop = l.size - start < kBlock ? l.size : start + kBlock;
    const auto scale_eps = static_cast<Accumulate<T>>(scales[b].eps);
    const auto scale_z = static_cast<Accumulate<T>>(scales[b].z);
    const auto sample = static_cast<uint32_t>(l.first_sample + b);

    for (int64_t first = start; first < stop; first += kRun) {
      const int64_t n = stop - first < kRun ? stop - first : kRun;
      Accumulate<T> z[kRun];
      normal_tiles(l.key, sample, first, n, z);
      const int64_t place = b * l.size + first;
      const Widened<T> x(l.x + place, n), eps(l.eps + place, n);
      Narrowed<T> out(l.out + place);
      SDA_FAST_INDEPENDENT
      for (int64_t i = 0; i < n; ++i) {
        out[i] = langevin_element(x[i], eps[i], z[i], scale_eps, scale_z);
      }
      out.store(n);
    }
  }
}

#else

// kAligned: all arrays are aligned to 16 bytes, and so is every sample in them.

constexpr int kThreadQuads = 4;                          // that a thread sums, and
constexpr int64_t kBlock = 4 * kThreadQuads * kThreads;  // elements that a thread block does

__host__ __device__ inline int64_t langevin_blocks(int64_t size) {
  return (size + kBlock - 1) / kBlock;
}

// Adds the values of a block's threads, whole warps of them, in a fixed order; the result is valid
// in thread 0.
__device__ inline double block_sum(double value) {
  __shared__ double shared[kThreads / 32];
#pragma unroll
  for (int width = 16; width > 0; width /= 2) value += __shfl_xor_sync(~0u, value, width);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (unsigned int warp = 0; warp < blockDim.x / 32; ++warp) sum += shared[warp];
  }
  __syncthreads();  // shared may be written again from here on
  return sum;
}

template <typename T>
__device__ __forceinline__ T add_squares(const Quad<T>& a, T sum) {
#pragma unroll
  for (int k = 0; k < 4; ++k) sum = multiply_add(a.v[k], a.v[k], sum);
  return sum;
}

// The update of a quad of sample b.
template <bool kAligned, typename T>
__device__ __forceinline__ void langevin_quad(const Langevin<T>& l, int64_t b, int64_t quad,
                                              Scales scales) {
  const int64_t offset = b * l.size + 4 * quad, left = l.size - 4 * quad;
  const auto scale_eps = static_cast<Accumulate<T>>(scales.eps);
  const auto scale_z = static_cast<Accumulate<T>>(scales.z);
  auto x = widen(load_quad<kAligned>(l.x + offset, left));
  const auto eps = widen(load_quad<kAligned>(l.eps + offset, left));
  Accumulate<T> z[4];
  normal_quad(l.key, static_cast<uint32_t>(l.first_sample + b), static_cast<uint64_t>(quad), z);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    x.v[k] = langevin_element(x.v[k], eps.v[k], z[k], scale_eps, scale_z);
  }
  store_quad<kAligned>(l.out + offset, left, narrow<Quad<T>>(x));
}

// The first pass takes eps as eps(i, left) gives it: the quad at element i, of which `left` lie in
// the sample. Here that is what is stored.
template <bool kAligned, typename T>
struct StoredEps {
  __device__ __forceinline__ Quad<T> operator()(int64_t i, int64_t left) const {
    return load_quad<kAligned>(eps + i, left);
  }

  const T* eps;
};

// All of it, for samples of at most kBlock elements: a thread block a sample. eps is read a second
// time while it is in the cache: to hold it would take registers that hide latency better.
template <bool kAligned, typename T, typename Eps>
__device__ __forceinline__ void langevin_samples(const Langevin<T>& l, const Eps& eps) {
  __shared__ Scales scales;
  const auto quads = static_cast<uint32_t>((l.size + 3) / 4);
  for (int64_t b = blockIdx.x; b < l.batch; b += gridDim.x) {
    Accumulate<T> sum = 0;
#pragma unroll kThreadQuads
    for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
      sum =
          add_squares(widen(eps(b * l.size + 4 * int64_t{quad}, l.size - 4 * int64_t{quad})), sum);
    }

    const double total = block_sum(static_cast<double>(sum));
    if (threadIdx.x == 0) {
      scales = langevin_scales(total / static_cast<double>(l.size), l.sigma, l.tau);
    }
    __syncthreads();  // the next write to scales is behind the barriers of the next block_sum

#pragma unroll 1
    for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
      langevin_quad<kAligned>(l, b, quad, scales);
    }
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) langevin_sample_kernel(Langevin<T> l) {
  langevin_samples<kAligned>(l, StoredEps<kAligned, T>{l.eps});
}

// Larger samples. First, scratch (batch, blocks): the sums of squares of each block, by kThreads
// threads.
template <typename T, typename Eps>
__device__ __forceinline__ void langevin_sums(const Langevin<T>& l, double* scratch,
                                              const Eps& eps) {
  const int64_t blocks = langevin_blocks(l.size);
  for (int64_t item = blockIdx.x; item < l.batch * blocks; item += gridDim.x) {
    const int64_t b = item / blocks, first = (item - b * blocks) * kBlock;
    Accumulate<T> sum = 0;
#pragma unroll
    for (int k = 0; k < kThreadQuads; ++k) {
      const int64_t i = first + 4 * (threadIdx.x + k * kThreads);
      sum = add_squares(widen(eps(b * l.size + i, l.size - i)), sum);
    }
    const double total = block_sum(static_cast<double>(sum));
    if (threadIdx.x == 0) scratch[item] = total;
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) langevin_sums_kernel(Langevin<T> l, double* scratch) {
  langevin_sums(l, scratch, StoredEps<kAligned, T>{l.eps});
}

// Then scales (batch, 2), of each sample's sums: a thread block a sample, kThreads threads.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    langevin_reduce_kernel(Langevin<T> l, const double* scratch, double* scales) {
  const int64_t blocks = langevin_blocks(l.size);
  for (int64_t b = blockIdx.x; b < l.batch; b += gridDim.x) {
    double sum = 0.0;
    for (int64_t k = threadIdx.x; k < blocks; k += kThreads) sum += scratch[b * blocks + k];
    const double total = block_sum(sum);
    if (threadIdx.x == 0) {
      const Scales s = langevin_scales(total / static_cast<double>(l.size), l.sigma, l.tau);
      scales[2 * b] = s.eps;
      scales[2 * b + 1] = s.z;
    }
  }
}

// Last the update: a thread a quad.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) langevin_kernel(Langevin<T> l, const double* scales) {
  const int64_t quads = (l.size + 3) / 4;
  const int64_t total = l.batch * quads;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; item < total;
       item += stride) {
    const int64_t b = item / quads;
    const int64_t quad = item - b * quads;
    langevin_quad<kAligned>(l, b, quad, {scales[2 * b], scales[2 * b + 1]});
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
