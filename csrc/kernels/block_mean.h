#pragma once

// Means over blocks of the trailing dimensions, y[b, j] = mean over 0 <= k < block of
// x[b, block j + k], summed in row-major order of k, and the adjoint, x[b, i] = y[b, i / block]
// over the number of elements of a block.

#include "number.h"
#include "subsample.h"

namespace sda_fast {

// The dimensions of y (batch, size); those of x are (batch, size * block). A line is the last one.
struct Blocks {
  int64_t batch;
  int dims;  // at least 1
  int64_t size[kMostDims], block[kMostDims];
  int64_t lines, elements;  // of a block
};

template <typename T>
struct BlockMean {
  const T* in;
  T* out;
  Blocks blocks;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

// The line of x that is the part-th of the blocks whose means make up a line of y.
SDA_FAST_FN int64_t line_of_part(const Blocks& b, int64_t line, int64_t part) {
  int64_t place = 0, scale = 1;
  for (int d = b.dims - 2; d >= 0; --d) {
    place += (line % b.size[d] * b.block[d] + part % b.block[d]) * scale;
    line /= b.size[d];
    part /= b.block[d];
    scale *= b.size[d] * b.block[d];
  }
  return line * scale + place;
}

// The line of y in whose blocks a line of x is.
SDA_FAST_FN int64_t line_of_means(const Blocks& b, int64_t line) {
  int64_t place = 0, scale = 1;
  for (int d = b.dims - 2; d >= 0; --d) {
    const int64_t size = b.size[d] * b.block[d];
    place += line % size / b.block[d] * scale;
    line /= size;
    scale *= b.size[d];
  }
  return line * scale + place;
}

#ifndef SDA_FAST_GPU

// Lines [begin, end) of y.
template <typename T>
inline void block_mean(const BlockMean<T>& m, int64_t begin, int64_t end) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1];
  const auto elements = static_cast<Accumulate<T>>(b.elements);
  for (int64_t line = begin; line < end; ++line) {
    for (int64_t j = 0; j < size; j += kRun) {
      const int64_t n = size - j < kRun ? size - j : kRun;
      Accumulate<T> sum[kRun] = {};
      for (int64_t part = 0; part < b.lines; ++part) {
        const T* x = m.in + (line_of_part(b, line, part) * size + j) * block;
        if (block == 1) {
          const Widened<T> run(x, n);
          SDA_FAST_INDEPENDENT
          for (int64_t i = 0; i < n; ++i) sum[i] += run[i];
        } else {
          for (int64_t i = 0; i < n; ++i) {
            for (int64_t k = 0; k < block; ++k) sum[i] += widen(x[i * block + k]);
          }
        }
      }
      Narrowed<T> mean(m.out + line * size + j);
      for (int64_t i = 0; i < n; ++i) mean[i] = sum[i] / elements;
      mean.store(n);
    }
  }
}

// Lines [begin, end) of x.
template <typename T>
inline void block_mean_adjoint(const BlockMean<T>& m, int64_t begin, int64_t end) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1];
  const auto elements = static_cast<Accumulate<T>>(b.elements);
  for (int64_t line = begin; line < end; ++line) {
    const T* y = m.in + line_of_means(b, line) * size;
    T* x = m.out + line * size * block;
    for (int64_t j = 0; j < size; ++j) {
      const T value = narrow<T>(widen(y[j]) / elements);
      for (int64_t k = 0; k < block; ++k) x[j * block + k] = value;
    }
  }
}

#else

template <typename T>
__device__ __forceinline__ T over(T a, int64_t n) {
  return a / static_cast<T>(n);
}
template <typename T>
__device__ __forceinline__ Quad<T> over(const Quad<T>& a, int64_t n) {
  return {over(a.v[0], n), over(a.v[1], n), over(a.v[2], n), over(a.v[3], n)};
}

// A thread an element, or a quad of lines that are as long in x as in y.
template <typename T>
__global__ void __launch_bounds__(kThreads) block_mean_kernel(BlockMean<T> m, int64_t total) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1];
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t line = i / size, j = i - line * size;
    Accumulate<T> sum = {};
    for (int64_t part = 0; part < b.lines; ++part) {
      const T* x = m.in + (line_of_part(b, line, part) * size + j) * block;
      for (int64_t k = 0; k < block; ++k) sum = sum + widen(x[k]);
    }
    m.out[i] = narrow<T>(over(sum, b.elements));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    block_mean_adjoint_kernel(BlockMean<T> m, int64_t total) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1];
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t line = i / (size * block), j = i % (size * block) / block;
    m.out[i] = narrow<T>(over(widen(m.in[line_of_means(b, line) * size + j]), b.elements));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
