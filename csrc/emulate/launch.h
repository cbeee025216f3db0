#pragma once

// What csrc/cuda/launch.h takes from torch and from CUDA's runtime, for the emulator: tensors lie
// in the CPU's memory, and there is no stream and no device to choose.

#include <torch/csrc/stable/device.h>

#include <functional>
#include <numeric>

#include "../checks.h"
#include "cuda.h"
#include "memory.h"

#define SDA_FAST_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sda_fast_emulate, CPU, m)

namespace sda_fast::cuda {

constexpr int64_t kMostBlocks = 5;  // so that kernels stride over small arrays too
constexpr int64_t kChunkBytes = 1 << 16;

struct Launch {
  explicit Launch(const Tensor&) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                  size_t shared, const Arguments&... arguments) const {
    emulate::run(name, blocks, threads, shared, [&] { kernel(arguments...); });
  }

  int64_t processors() const { return kMostBlocks; }
  size_t most_shared() const { return emulate::kMostShared; }
};

}  // namespace sda_fast::cuda

namespace sda_fast::emulate {

inline size_t size_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    default:
      return 1;
  }
}

// A dense tensor that is guarded by the pages around it, full of poison, aligned or not.
inline Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                    ScalarType type, bool odd) {
  const int64_t numel =
      std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>());
  const size_t bytes = static_cast<size_t>(numel) * size_of(type);
  void* memory = allocate(bytes, odd ? odd_gap(bytes, size_of(type)) : aligned_gap(bytes));
  return torch::stable::from_blob(memory, sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  &release);
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type, bool odd = false) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;)
    strides[d - 1] = strides[d] * std::max<int64_t>(1, sizes[d]);
  return empty(sizes, strides, type, odd);
}

}  // namespace sda_fast::emulate

namespace sda_fast::cuda {

inline Tensor allocate(const Tensor&, const std::vector<int64_t>& sizes, ScalarType type) {
  return emulate::empty(sizes, type);
}

inline Tensor allocate_like(const Tensor& t) {
  const Tensor like = torch::stable::empty_like(t);
  const std::vector<int64_t> strides(like.strides().begin(), like.strides().end());
  return emulate::empty(sizes({}, t, 0), strides, t.scalar_type(), false);
}

}  // namespace sda_fast::cuda
