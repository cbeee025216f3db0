#pragma once

// The adjoint of `gather`: out[b, i] = sum of weight[n, j] windows[b, n, j] over the n, j with
// start[n] + j = i, in order of n, so that the result does not depend on how the work is divided.
// Rows of weight 0 are not read. As start is ascending, the windows that reach a state are
// neighbours, and a binary search finds them.

#include "number.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast {

// windows (batch, count, window, row), start (count), weight (count, window),
// out (batch, length, row), all contiguous but for the batch and the count of the windows, whose
// strides are given.
template <typename T>
struct Compose {
  const T* windows;
  const int64_t* start;
  const int8_t* weight;
  T* out;
  int64_t batch, length, count, window, row;
  int64_t batch_stride, window_stride;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

// The first n with start[n] >= state, or count.
SDA_FAST_FN int64_t first_window(const int64_t* start, int64_t count, int64_t state) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (start[middle] < state) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

#ifndef SDA_FAST_GPU

// Rows that follow each other in the result lie a window apart, which hardware does not foresee:
// they are asked for this many bytes of the result before they are needed. (Shorter rows than a
// line of the cache are near enough.)
constexpr int64_t kAheadBytes = 4096, kLineBytes = 64;

// Asks for a row; where it lies beyond the windows, for nothing that is used.
template <typename T>
SDA_FAST_FN void prefetch_row(const Compose<T>& c, int64_t place) {
  const auto row =
      reinterpret_cast<uintptr_t>(c.windows) + static_cast<uintptr_t>(place) * sizeof(T);
  for (uintptr_t byte = 0; byte < static_cast<uintptr_t>(c.row) * sizeof(T); byte += kLineBytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(row + byte));
  }
}

// State i of sample b, of windows [low, high). `ahead` is in windows.
template <typename T>
inline void compose_state(const Compose<T>& c, int64_t b, int64_t i, int64_t low, int64_t high,
                          int64_t ahead) {
  for_runs<T>(c.row, [&](int64_t place, int64_t size) {
    Narrowed<T> sum(c.out + (b * c.length + i) * c.row + place);
    bool empty = true;
    for (int64_t n = low; n < high; ++n) {
      const int64_t j = i - c.start[n];
      const int8_t weight = c.weight[n * c.window + j];
      if (weight == 0) continue;
      const int64_t first = b * c.batch_stride + n * c.window_stride + j * c.row;
      if (ahead > 0) prefetch_row(c, first + ahead * c.window_stride);
      const Widened<T> row(c.windows + first + place, size);
      if (empty && weight > 0) {
        SDA_FAST_INDEPENDENT
        for (int64_t e = 0; e < size; ++e) sum[e] = row[e];
      } else if (empty) {
        SDA_FAST_INDEPENDENT
        for (int64_t e = 0; e < size; ++e) sum[e] = -row[e];
      } else if (weight > 0) {
        SDA_FAST_INDEPENDENT
        for (int64_t e = 0; e < size; ++e) sum[e] += row[e];
      } else {
        SDA_FAST_INDEPENDENT
        for (int64_t e = 0; e < size; ++e) sum[e] -= row[e];
      }
      empty = false;
    }
    if (empty) {
      for (int64_t e = 0; e < size; ++e) sum[e] = 0;
    }
    sum.store(size);
  });
}

// Composes states [begin, end) of the batch * length there are. only (length): where in a sample's
// windows the one row lies that is the state, of weight +1, as all states of a published plan are:
// it need not be computed with. Else -1: the range of windows that reach the state is found, by a
// search once per trajectory and call, as it moves along with the state.
template <typename T>
inline void compose(const Compose<T>& c, const int64_t* only, int64_t begin, int64_t end) {
  const int64_t bytes = c.row * static_cast<int64_t>(sizeof(T));
  const int64_t ahead = bytes >= kLineBytes ? kAheadBytes / bytes : 0;
  const int64_t windows_ahead = ahead * c.count / c.length;
  int64_t b = begin / c.length, i = begin % c.length;
  int64_t low = -1, high = -1;
  for (int64_t item = begin; item < end; ++item) {
    if (only[i] >= 0) {
      const T* row = c.windows + b * c.batch_stride + only[i];
      T* out = c.out + item * c.row;
      const int64_t next = i + ahead < c.length ? i + ahead : i + ahead - c.length;
      if (ahead > 0 && next < c.length) {
        prefetch_row(c, (next < i ? b + 1 : b) * c.batch_stride + only[next]);
      }
      if (c.row >= 16) {
        __builtin_memcpy(out, row, static_cast<uint64_t>(bytes));
      } else {
        for (int64_t e = 0; e < c.row; ++e) out[e] = row[e];
      }
    } else {
      if (low < 0) low = high = first_window(c.start, c.count, i - c.window + 1);
      while (low < c.count && c.start[low] <= i - c.window) ++low;
      if (high < low) high = low;
      while (high < c.count && c.start[high] <= i) ++high;
      compose_state(c, b, i, low, high, windows_ahead);
    }
    if (++i == c.length) {
      i = 0;
      ++b;
      low = -1;
    }
  }
}

#else

// Element e, or quad e, of the result, added to what earlier windows give.
template <typename T>
__device__ __forceinline__ Accumulate<T> composed(const Compose<T>& c, int64_t e,
                                                  Accumulate<T> sum = {}) {
  const int64_t item = e / c.row;
  const int64_t place = e - item * c.row;
  const int64_t b = item / c.length;
  const int64_t i = item - b * c.length;

  for (int64_t n = first_window(c.start, c.count, i - c.window + 1); n < c.count; ++n) {
    const int64_t j = i - c.start[n];
    if (j < 0) break;
    if (j >= c.window) continue;  // only if start is not ascending: never read beyond a window
    const int8_t weight = c.weight[n * c.window + j];
    if (weight == 0) continue;
    const T* window = c.windows + b * c.batch_stride + n * c.window_stride;
    const auto value = widen(window[j * c.row + place]);
    sum = weight > 0 ? sum + value : sum - value;
  }
  return sum;
}

// A thread an element, or a quad of a row; no atomics.
template <typename T>
__global__ void __launch_bounds__(kThreads) compose_kernel(Compose<T> c) {
  const int64_t total = c.batch * c.length * c.row;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; e < total; e += stride) {
    c.out[e] = narrow<T>(composed(c, e));
  }
}

// Of windows that come after those which the result is made of so far: out is added to.
template <typename T>
__global__ void __launch_bounds__(kThreads) compose_more_kernel(Compose<T> c) {
  const int64_t total = c.batch * c.length * c.row;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; e < total; e += stride) {
    c.out[e] = narrow<T>(composed(c, e, widen(c.out[e])));
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
