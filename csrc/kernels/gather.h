#pragma once

// Windows of trajectories: out[b, n, j] = weight[n, j] x[b, start[n] + j], weights in {-1, 0, +1}.
// A row of weight 0 is 0 and its state is not read (it may lie beyond the trajectory).

#include "number.h"

#ifdef SDA_FAST_GPU
#include "quad.h"
#endif

namespace sda_fast {

// x (batch, length, row), start (count), weight (count, window), out (batch, count, window, row),
// all contiguous but for the batch and the time of x, whose strides are given; a row is everything
// that one state holds.
template <typename T>
struct Gather {
  const T* x;
  const int64_t* start;
  const int8_t* weight;
  T* out;
  int64_t batch, length, count, window, row;
  int64_t batch_stride, time_stride;
};

}  // namespace sda_fast

namespace sda_fast::SDA_FAST_VARIANT {

#ifndef SDA_FAST_GPU

// Gathers windows [begin, end) of the batch * count there are. Neighbouring rows of one weight are
// neighbours in out, and mostly in x: they then go as one run.
template <typename T>
inline void gather(const Gather<T>& g, int64_t begin, int64_t end) {
  const bool dense = g.time_stride == g.row;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / g.count, n = item % g.count;
    const int8_t* weight = g.weight + n * g.window;
    for (int64_t j = 0; j < g.window;) {
      int64_t next = j + 1;
      while (dense && next < g.window && weight[next] == weight[j]) ++next;

      T* out = g.out + (item * g.window + j) * g.row;
      const int64_t size = (next - j) * g.row;
      if (weight[j] == 0) {
        for (int64_t i = 0; i < size; ++i) out[i] = T{};
      } else {
        const T* x = g.x + b * g.batch_stride + (g.start[n] + j) * g.time_stride;
        if (weight[j] > 0) {
          SDA_FAST_INDEPENDENT
          for (int64_t i = 0; i < size; ++i) out[i] = x[i];
        } else {
          SDA_FAST_INDEPENDENT
          for (int64_t i = 0; i < size; ++i) out[i] = -x[i];
        }
      }
      j = next;
    }
  }
}

#else

// A thread an element, or a quad of a row. A plan cannot be checked here without waiting for the
// device, so a state outside the trajectory becomes NaN: seen, and never read. (Unrolled, a loop
// over a thread's few elements first divides to count them, and takes more registers.)
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(Gather<T> g) {
  const int64_t total = g.batch * g.count * g.window * g.row;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t window_row = i / g.row;
    const int64_t place = i - window_row * g.row;
    const int64_t item = window_row / g.window;
    const int64_t j = window_row - item * g.window;
    const int64_t b = item / g.count;
    const int64_t n = item - b * g.count;
    const int8_t weight = g.weight[n * g.window + j];

    T value = {};
    if (weight != 0) {
      const int64_t state = g.start[n] + j;
      if (state >= 0 && state < g.length) {
        value = g.x[b * g.batch_stride + state * g.time_stride + place];
      } else {
        set_nan(value);
      }
      if (weight < 0) value = -value;
    }
    g.out[i] = value;
  }
}

#endif

}  // namespace sda_fast::SDA_FAST_VARIANT
