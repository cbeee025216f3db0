#pragma once

// Fields that a convolution reads: channels last in memory, with circular padding around them. A
// source of (height, width) points is first repeated `up` times along each of its axes, then
// padded,
//
//   out[b, pad + up i + r, ...] = source[b, i, ...],  0 <= r < up,
//
// and what lies beyond an end of the out's inner part is what lies within its other end.

#include "number.h"
#ifndef SDA_FAST_GPU
#include "vector.h"
#endif

namespace sda_fast {

// How far apart neighbours lie.
struct FieldStrides {
  int64_t batch, channel, row, column;
};

// out is (batch, rows() + 2 pad_rows, columns() + 2 pad_columns, channels), contiguous; a pad is at
// most as wide as what it surrounds.
struct Padded {
  int64_t batch, channels, height, width;
  int64_t pad_rows, pad_columns, up_rows, up_columns;
};

constexpr int64_t kMostChannels = 2048;  // of a source: a point of it lies on the stack

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

SDA_FAST_FN int64_t padded_rows(const Padded& p) { return p.up_rows * p.height + 2 * p.pad_rows; }
SDA_FAST_FN int64_t padded_columns(const Padded& p) {
  return p.up_columns * p.width + 2 * p.pad_columns;
}

// Calls f with each of the places where line i of n lines comes to lie.
template <typename F>
SDA_FAST_FN void for_images(int64_t i, int64_t n, int64_t pad, const F& f) {
  f(pad + i);
  if (i < pad) f(pad + i + n);
  if (i >= n - pad) f(pad + i - n);
}

#ifndef SDA_FAST_GPU

// Writes all that row h of field b comes to be. f(to, step) writes its points, a step apart.
template <typename T, typename F>
inline void padded_row(const Padded& p, T* out, int64_t b, int64_t h, const F& f) {
  const int64_t rows = p.up_rows * p.height, columns = p.up_columns * p.width;
  const int64_t point = p.channels, line = padded_columns(p) * point, step = p.up_columns * point;
  T* field = out + b * padded_rows(p) * line;
  T* first = field + (p.pad_rows + h * p.up_rows) * line;
  T* inner = first + p.pad_columns * point;

  f(inner, step);
  for (int64_t i = 0; i < p.width; ++i) {
    for (int64_t r = 1; r < p.up_columns; ++r) {
      __builtin_memcpy(inner + i * step + r * point, inner + i * step, point * sizeof(T));
    }
  }
  const int64_t pad = p.pad_columns * point;
  __builtin_memcpy(first, first + columns * point, pad * sizeof(T));
  __builtin_memcpy(inner + columns * point, inner, pad * sizeof(T));

  for (int64_t r = 0; r < p.up_rows; ++r) {
    for_images(h * p.up_rows + r, rows, p.pad_rows, [&](int64_t row) {
      T* to = field + row * line;
      if (to != first) __builtin_memcpy(to, first, line * sizeof(T));
    });
  }
}

// 64 bytes of numbers, whatever the registers of the instruction set are: the order of a sum does
// not depend on them. In parts as wide as these, as GCC takes wider vectors apart in memory.
template <typename A>
struct Lanes {
  static constexpr int64_t kCount = 64 / sizeof(A), kParts = 64 / kVectorBytes;
  typedef A Part __attribute__((vector_size(kVectorBytes), aligned(kVectorBytes), may_alias));
  typedef A Quarter __attribute__((vector_size(16)));

  Part parts[kParts];

  SDA_FAST_FN A sum() const {
    Quarter q[4];
    __builtin_memcpy(q, parts, sizeof(q));
    const Quarter s = (q[0] + q[1]) + (q[2] + q[3]);
    if constexpr (sizeof(A) == 4) {
      return (s[0] + s[2]) + (s[1] + s[3]);
    } else {
      return s[0] + s[1];
    }
  }
};

template <typename A>
SDA_FAST_FN Lanes<A>& operator+=(Lanes<A>& a, const Lanes<A>& b) {
  for (int64_t i = 0; i < Lanes<A>::kParts; ++i) a.parts[i] += b.parts[i];
  return a;
}
template <typename A>
SDA_FAST_FN Lanes<A>& operator-=(Lanes<A>& a, A b) {
  for (int64_t i = 0; i < Lanes<A>::kParts; ++i) a.parts[i] -= b;
  return a;
}
template <typename A>
SDA_FAST_FN Lanes<A>& operator*=(Lanes<A>& a, A b) {
  for (int64_t i = 0; i < Lanes<A>::kParts; ++i) a.parts[i] *= b;
  return a;
}
template <typename A>  // sum += a b
SDA_FAST_FN void add_product(Lanes<A>& sum, const Lanes<A>& a, const Lanes<A>& b) {
  for (int64_t i = 0; i < Lanes<A>::kParts; ++i) sum.parts[i] += a.parts[i] * b.parts[i];
}

// The channels of some points, widened, in whole vectors: what is beyond the last channel of each
// is zero.
template <typename A>
struct Points {
  static constexpr int64_t kMost = 16;  // points that are worked on together

  SDA_FAST_FN explicit Points(int64_t channels)
      : channels(channels), vectors((channels + Lanes<A>::kCount - 1) / Lanes<A>::kCount) {}

  // How many points there is room for, up to kMost.
  SDA_FAST_FN int64_t most() const {
    const int64_t room = kVectors / vectors;
    return room < kMost ? room : kMost;
  }

  SDA_FAST_FN Lanes<A>* operator[](int64_t i) { return data + i * vectors; }
  SDA_FAST_FN const Lanes<A>* operator[](int64_t i) const { return data + i * vectors; }

  template <typename T>
  SDA_FAST_FN void load(const T* x, int64_t stride, int64_t i = 0) {
    A* values = reinterpret_cast<A*>((*this)[i]);
    int64_t c = 0;
    if (stride != 1) {
      for (; c < channels; ++c) values[c] = widen(x[c * stride]);
    } else if constexpr (sizeof(T) == sizeof(A)) {
      for (; c + Lanes<A>::kCount <= channels; c += Lanes<A>::kCount) {
        __builtin_memcpy(values + c, x + c, sizeof(Lanes<A>));
      }
      for (; c < channels; ++c) values[c] = x[c];
    } else {
      widen(x, values, channels);
    }
    fill(A(0), i);
  }

  template <typename T>
  SDA_FAST_FN void store(T* out, int64_t i = 0) const {
    const A* values = reinterpret_cast<const A*>((*this)[i]);
    if constexpr (sizeof(T) == sizeof(A)) {
      int64_t c = 0;
      for (; c + Lanes<A>::kCount <= channels; c += Lanes<A>::kCount) {
        __builtin_memcpy(out + c, values + c, sizeof(Lanes<A>));
      }
      for (; c < channels; ++c) out[c] = values[c];
    } else {
      narrow(values, out, channels);
    }
  }

  // Of what lies beyond the last channel.
  SDA_FAST_FN void fill(A beyond, int64_t i = 0) {
    A* values = reinterpret_cast<A*>((*this)[i]);
    for (int64_t c = channels; c < vectors * Lanes<A>::kCount; ++c) values[c] = beyond;
  }

  static constexpr int64_t kVectors = kMostChannels / Lanes<A>::kCount;
  int64_t channels, vectors;
  Lanes<A> data[kVectors];
};

#else

// The kernels of fields ask for no more than one block a processor, or the compiler would rather
// spill registers than have fewer blocks.

// Neighbouring channels that a lane works on at once: 16 bytes of them.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// The lanes of a warp that work on a point together, each on packs of its channels a round apart:
// as many as there are packs, to a power of two, or the whole warp.
SDA_FAST_FN int team_size(int64_t channels, int pack) {
  int lanes = 1;
  while (lanes < 32 && lanes * pack < channels) lanes *= 2;
  return lanes;
}

struct Team {
  __device__ __forceinline__ Team(int64_t channels, int pack)
      : lanes(team_size(channels, pack)),
        lane(static_cast<int>(threadIdx.x) % lanes),
        mask((~0u >> (32 - lanes)) << (threadIdx.x % 32 - lane)) {}

  // Over its lanes, in an order that depends on nothing else.
  template <typename A>
  __device__ __forceinline__ A sum(A value) const {
    for (int width = lanes / 2; width > 0; width /= 2) value += __shfl_xor_sync(mask, value, width);
    return value;
  }

  // Calls f with the first channel of each pack of this lane.
  template <typename F>
  __device__ __forceinline__ void for_packs(int64_t channels, int pack, const F& f) const {
#pragma unroll 1
    for (int64_t c = lane * pack; c < channels; c += lanes * pack) f(c);
  }

  int lanes, lane;
  uint32_t mask;
};

// Calls f(b, h, w) for the points of this team, the teams striding over all. There are fewer than
// 2^31 of them: 64-bit division is a function on a GPU, and spills registers where it is called.
template <typename F>
__device__ __forceinline__ void for_points(const Padded& p, const Team& team, const F& f) {
  const uint32_t teams = blockDim.x / team.lanes, width = static_cast<uint32_t>(p.width);
  const auto size = static_cast<uint32_t>(p.height) * width;
  const uint32_t total = static_cast<uint32_t>(p.batch) * size;
  for (uint32_t i = blockIdx.x * teams + threadIdx.x / team.lanes; i < total;
       i += gridDim.x * teams) {
    const uint32_t b = i / size, h = (i - b * size) / width;
    f(int64_t{b}, int64_t{h}, int64_t{i - b * size - h * width});
  }
}

template <typename T>
struct alignas(16) Pack {
  T v[kPack<T>];
};

// Widens the numbers at p, a stride apart, of which `left` are there; zero for the others.
// kAligned: they lie side by side and all are there, aligned to 16 bytes.
template <bool kAligned, typename T, int N>
__device__ __forceinline__ void load(const T* p, int64_t stride, int64_t left,
                                     Accumulate<T> (&to)[N]) {
  if constexpr (kAligned) {
    constexpr int kCount = kPack<T>;
#pragma unroll
    for (int first = 0; first < N; first += kCount) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(p + first);
#pragma unroll
      for (int k = 0; k < kCount; ++k) to[first + k] = widen(pack.v[k]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) to[k] = k < left ? widen(p[k * stride]) : Accumulate<T>(0);
  }
}

// Writes channels of a point, from c on, to all places where it comes to lie.
template <bool kAligned, typename T>
__device__ __forceinline__ void put(const Padded& p, T* out, int64_t b, int64_t h, int64_t w,
                                    int64_t c, const Accumulate<T> (&values)[kPack<T>]) {
  Pack<T> pack;
#pragma unroll
  for (int k = 0; k < kPack<T>; ++k) narrow(values[k], pack.v[k]);
  const int64_t rows = p.up_rows * p.height, columns = p.up_columns * p.width;
#pragma unroll 1
  for (int64_t r = h * p.up_rows; r < (h + 1) * p.up_rows; ++r) {
    for_images(r, rows, p.pad_rows, [&](int64_t row) {
      T* line = out + (b * padded_rows(p) + row) * padded_columns(p) * p.channels + c;
#pragma unroll 1
      for (int64_t s = w * p.up_columns; s < (w + 1) * p.up_columns; ++s) {
        for_images(s, columns, p.pad_columns, [&](int64_t column) {
          T* to = line + column * p.channels;
          if constexpr (kAligned) {
            *reinterpret_cast<Pack<T>*>(to) = pack;
          } else {
#pragma unroll
            for (int k = 0; k < kPack<T>; ++k) {
              if (c + k < p.channels) to[k] = pack.v[k];
            }
          }
        });
      }
    });
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
