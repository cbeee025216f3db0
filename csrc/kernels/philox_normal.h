#pragma once

// Fills tensors with the normal numbers of a stream: element e of sample s holds number e mod 4 of
// the four that the words at (e / 4, s) give, two by Box-Muller from each pair.

#include "normal.h"
#include "number.h"
#include "philox.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
SDA_FAST_FN void normal_quad(NoiseKey key, uint32_t sample, uint64_t quad, T z[4]) {
  const Words words = noise_words(key, sample, quad);
  normal_pair(words.w0, words.w1, z[0], z[1]);
  normal_pair(words.w2, words.w3, z[2], z[3]);
}

}  // namespace sda_fast::SDA_FAST_VARIANT

namespace sda_fast {

// out (batch, size), contiguous.
template <typename T>
struct PhiloxNormal {
  T* out;
  int64_t batch, size;
  NoiseKey key;
  uint32_t first_sample;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

#ifndef SDA_FAST_GPU

// The numbers are made a tile at a time, always whole and always from the same elements on, so
// that they do not depend on where a thread's share begins or ends.
constexpr int kTileQuads = 16;
constexpr int kTile = 4 * kTileQuads;

// Fills z with the numbers of elements [first, first + kTile); kTile divides first.
template <typename T>
inline void normal_tile(NoiseKey key, uint32_t sample, int64_t first, T* z) {
  const uint64_t quad = static_cast<uint64_t>(first) / 4;
  uint32_t words[4][kTileQuads];
  T numbers[4][kTileQuads];
  noise_words(key, sample, quad, words);
  for (int i = 0; i < kTileQuads; ++i) {
    normal_pair(words[0][i], words[1][i], numbers[0][i], numbers[1][i]);
  }
  for (int i = 0; i < kTileQuads; ++i) {
    normal_pair(words[2][i], words[3][i], numbers[2][i], numbers[3][i]);
  }
  for (int i = 0; i < kTileQuads; ++i) {
    for (int k = 0; k < 4; ++k) z[4 * i + k] = numbers[k][i];
  }
}

// Fills tiles [begin, end) of those of all samples, ceil(size / kTile) each.
template <typename T>
inline void philox_normal(const PhiloxNormal<T>& p, int64_t begin, int64_t end) {
  const int64_t tiles = (p.size + kTile - 1) / kTile;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / tiles, first = item % tiles * kTile;
    const auto sample = static_cast<uint32_t>(p.first_sample + b);
    const int64_t n = p.size - first < kTile ? p.size - first : kTile;
    T* out = p.out + b * p.size + first;
    if constexpr (sizeof(T) == sizeof(Accumulate<T>)) {
      if (n == kTile) {
        normal_tile(p.key, sample, first, out);
        continue;
      }
    }
    Accumulate<T> z[kTile];
    normal_tile(p.key, sample, first, z);
    narrow(z, out, n);
  }
}

#else

// A thread a quad. kAligned: the array is aligned to 16 bytes, and so is every sample in it.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) philox_normal_kernel(PhiloxNormal<T> p) {
  const int64_t quads = (p.size + 3) / 4;
  const int64_t total = p.batch * quads;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; item < total;
       item += stride) {
    const int64_t b = item / quads;
    const int64_t quad = item - b * quads;
    Quad<Accumulate<T>> z;
    normal_quad(p.key, static_cast<uint32_t>(p.first_sample + b), static_cast<uint64_t>(quad), z.v);
    store_quad<kAligned>(p.out + b * p.size + 4 * quad, p.size - 4 * quad, narrow<Quad<T>>(z));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
