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

// The first line of x of the blocks whose means make up a line of y.
SDA_FAST_FN int64_t first_line(const Blocks& b, int64_t line) {
  int64_t place = 0, scale = 1;
  for (int d = b.dims - 2; d >= 0; --d) {
    place += line % b.size[d] * b.block[d] * scale;
    line /= b.size[d];
    scale *= b.size[d] * b.block[d];
  }
  return line * scale + place;
}

// How far from it the part-th line of the blocks is. A block has fewer than 2^32 lines: 64-bit
// division is a function on a GPU, and spills registers where it is called in a loop.
SDA_FAST_FN int64_t line_of_part(const Blocks& b, uint32_t part) {
  int64_t place = 0, scale = 1;
  for (int d = b.dims - 2; d >= 0; --d) {
    const auto block = static_cast<uint32_t>(b.block[d]);
    place += part % block * scale;
    part /= block;
    scale *= b.size[d] * b.block[d];
  }
  return place;
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

// A number that is known to the optimiser.
template <int64_t k>
struct Constant {
  SDA_FAST_FN operator int64_t() const { return k; }
};

// Calls f with the size of a block along a line: known to the optimiser if it is a usual one.
template <typename F>
inline void with_block(int64_t block, const F& f) {
  switch (block) {
    case 2:
      return f(Constant<2>{});
    case 4:
      return f(Constant<4>{});
    case 8:
      return f(Constant<8>{});
    default:
      return f(block);
  }
}

// Adds n blocks of a line to as many sums.
template <typename T, typename Block>
inline void add_blocks(const T* x, int64_t n, Block block, Accumulate<T>* sum) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < block; ++k) sum[i] += widen(x[i * block + k]);
  }
}

// Lines [begin, end) of y.
template <typename T>
inline void block_mean(const BlockMean<T>& m, int64_t begin, int64_t end) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1];
  const auto scale = 1 / static_cast<Accumulate<T>>(b.elements);
  for (int64_t line = begin; line < end; ++line) {
    const int64_t first = first_line(b, line);
    for (int64_t j = 0; j < size; j += kRun) {
      const int64_t n = size - j < kRun ? size - j : kRun;
      Accumulate<T> sum[kRun] = {};
      for (int64_t part = 0; part < b.lines; ++part) {
        const int64_t from = first + line_of_part(b, static_cast<uint32_t>(part));
        const T* x = m.in + (from * size + j) * block;
        if (block == 1) {
          const Widened<T> run(x, n);
          SDA_FAST_INDEPENDENT
          for (int64_t i = 0; i < n; ++i) sum[i] += run[i];
        } else {
          with_block(block, [&](auto known) { add_blocks(x, n, known, sum); });
        }
      }
      Narrowed<T> mean(m.out + line * size + j);
      for (int64_t i = 0; i < n; ++i) mean[i] = sum[i] * scale;
      mean.store(n);
    }
  }
}

// Spreads n means over as many blocks of a line.
template <typename T, typename Block>
inline void spread(const T* y, int64_t n, Block block, Accumulate<T> scale, T* x) {
  for (int64_t j = 0; j < n; ++j) {
    const T value = narrow<T>(widen(y[j]) * scale);
    for (int64_t k = 0; k < block; ++k) x[j * block + k] = value;
  }
}

// Lines [begin, end) of x. Those of the same blocks are copies of the first.
template <typename T>
inline void block_mean_adjoint(const BlockMean<T>& m, int64_t begin, int64_t end) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1], length = size * block;
  const auto scale = 1 / static_cast<Accumulate<T>>(b.elements);
  const T* before = nullptr;
  for (int64_t line = begin; line < end; ++line) {
    const T* y = m.in + line_of_means(b, line) * size;
    T* x = m.out + line * length;
    if (y == before) {
      __builtin_memcpy(x, x - length, static_cast<uint64_t>(length) * sizeof(T));
    } else {
      with_block(block, [&](auto known) { spread(y, size, known, scale, x); });
    }
    before = y;
  }
}

#else

// The arithmetic of an element or a quad of them.
template <typename A>
struct Scalar {
  using type = A;
};
template <typename A>
struct Scalar<Quad<A>> {
  using type = A;
};

template <typename A>
__device__ __forceinline__ A scaled(A a, A scale) {
  return a * scale;
}
template <typename A>
__device__ __forceinline__ Quad<A> scaled(const Quad<A>& a, A scale) {
  return {a.v[0] * scale, a.v[1] * scale, a.v[2] * scale, a.v[3] * scale};
}

// Divided once for all: the division of doubles is a function on some devices, and spills registers
// where it is called in the loop.
template <typename T>
__device__ __forceinline__ typename Scalar<Accumulate<T>>::type scale_of(const Blocks& b) {
  using A = typename Scalar<Accumulate<T>>::type;
  return A{1} / static_cast<A>(b.elements);
}

// A thread an element, or a quad of lines that are as long in x as in y.
template <typename T>
__global__ void __launch_bounds__(kThreads) block_mean_kernel(BlockMean<T> m, int64_t total) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1];
  const auto scale = scale_of<T>(b);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t line = i / size, j = i - line * size;
    const T* first = m.in + (first_line(b, line) * size + j) * block;
    Accumulate<T> sum = {};
    for (uint32_t part = 0; part < b.lines; ++part) {
      const T* x = first + line_of_part(b, part) * size * block;
      for (int64_t k = 0; k < block; ++k) sum = sum + widen(x[k]);
    }
    m.out[i] = narrow<T>(scaled(sum, scale));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    block_mean_adjoint_kernel(BlockMean<T> m, int64_t total) {
  const Blocks& b = m.blocks;
  const int64_t size = b.size[b.dims - 1], block = b.block[b.dims - 1];
  const auto scale = scale_of<T>(b);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t line = i / (size * block), j = i % (size * block) / block;
    m.out[i] = narrow<T>(scaled(widen(m.in[line_of_means(b, line) * size + j]), scale));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
