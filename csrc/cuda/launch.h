#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>

#include "../checks.h"

namespace sda_fast::cuda {

// The device of a tensor made the current one for a scope, and the stream that torch has current
// on it. Nothing here waits for the device: an operator may be captured in a graph.
struct Launch {
  explicit Launch(const Tensor& t) : guard(t.get_device_index()) {
    void* handle = nullptr;
    check(aoti_torch_get_current_cuda_stream(t.get_device_index(), &handle) == 0,
          "torch gave no current CUDA stream for device ", t.get_device_index(), ".");
    stream = static_cast<cudaStream_t>(handle);
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

constexpr int kLaunchThreads = 256;  // where a kernel takes any number

// Thread blocks for n work items at `per_block` a block. Kernels stride over what is left.
inline unsigned int blocks_for(int64_t n, int64_t per_block = kLaunchThreads) {
  constexpr int64_t kMost = 1 << 20;
  return static_cast<unsigned int>(std::clamp<int64_t>((n + per_block - 1) / per_block, 1, kMost));
}

// After every launch, by the operator's name.
inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  check(error == cudaSuccess, name, ": the CUDA launch failed: ", cudaGetErrorString(error), ".");
}

}  // namespace sda_fast::cuda
