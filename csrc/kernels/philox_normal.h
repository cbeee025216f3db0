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
static_assert(kRun % kTile == 0);

// Stores the four numbers of each quad side by side, for the groups whose lanes are those from
// `lane` on of a vector of words, a register full: z is the place of the first.
template <typename T>
constexpr int kStored = static_cast<int>(4 * kGroups / sizeof(T));

template <typename T>
SDA_FAST_FN void store_quads(const T (&numbers)[4][kTileQuads], int lane, T* z) {
  if constexpr (kStored<T> == 0) {  // a quad is more than a register
    for (int m = 0; m < 4; ++m) {
      for (int k = 0; k < 4; ++k) z[4 * m + k] = numbers[k][lane + m];
    }
  } else {
    typedef T Vector
        __attribute__((vector_size(4 * kStored<T> * sizeof(T)), aligned(sizeof(T)), may_alias));
    Vector n[4];
    for (int k = 0; k < 4; ++k) n[k] = *reinterpret_cast<const Vector*>(numbers[k] + lane);
    const Vector lower[2] = {shuffle<0, 4, 1, 5>(n[0], n[1]), shuffle<0, 4, 1, 5>(n[2], n[3])};
    const Vector upper[2] = {shuffle<2, 6, 3, 7>(n[0], n[1]), shuffle<2, 6, 3, 7>(n[2], n[3])};
    const Vector quads[4] = {
        shuffle<0, 1, 4, 5>(lower[0], lower[1]), shuffle<2, 3, 6, 7>(lower[0], lower[1]),
        shuffle<0, 1, 4, 5>(upper[0], upper[1]), shuffle<2, 3, 6, 7>(upper[0], upper[1])};
    for (int m = 0; m < 4; ++m) *reinterpret_cast<Vector*>(z + 4 * kGroups * m) = quads[m];
  }
}

// Fills z with the numbers of elements [first, first + count), count rounded up to whole tiles;
// kTile divides first. A loop over tiles, so that the keys of all rounds are made once.
template <typename T>
inline void normal_tiles(NoiseKey key, uint32_t sample, int64_t first, int64_t count, T* z) {
  for (int64_t i = 0; i < count; i += kTile) {
    uint32_t words[4][kTileQuads];
    T numbers[4][kTileQuads];
    noise_words(key, sample, static_cast<uint64_t>(first + i) / 4, words);
    for (int k = 0; k < kTileQuads; ++k) {
      normal_pair(words[0][k], words[1][k], numbers[0][k], numbers[1][k]);
      normal_pair(words[2][k], words[3][k], numbers[2][k], numbers[3][k]);
    }
    for (int lane = 0; lane < kTileQuads; lane += kVectorQuads) {
      for (int group = 0; group < kGroups; group += kStored<T> > 0 ? kStored<T> : 1) {
        store_quads(numbers, lane + 4 * group, z + i + 4 * (lane + group));
      }
    }
  }
}

// Fills runs [begin, end) of those of all samples, ceil(size / kRun) each.
template <typename T>
inline void philox_normal(const PhiloxNormal<T>& p, int64_t begin, int64_t end) {
  const int64_t runs = (p.size + kRun - 1) / kRun;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / runs, first = item % runs * kRun;
    const auto sample = static_cast<uint32_t>(p.first_sample + b);
    const int64_t n = p.size - first < kRun ? p.size - first : kRun;
    T* out = p.out + b * p.size + first;
    int64_t whole = 0;
    if constexpr (sizeof(T) == sizeof(Accumulate<T>)) {
      whole = n / kTile * kTile;
      normal_tiles(p.key, sample, first, whole, out);
      if (whole == n) continue;
    }
    Accumulate<T> z[kRun];
    normal_tiles(p.key, sample, first + whole, n - whole, z);
    narrow(z, out + whole, n - whole);
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
