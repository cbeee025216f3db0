#pragma once

// What the operators need of torch and of CUDA's runtime, and all that they need of it: under
// SDA_FAST_EMULATE the same operators and kernels run on the CPU, for tests (../emulate).

#include <algorithm>
#include <cstdint>

#include "../checks.h"

#ifdef SDA_FAST_EMULATE
#include "../emulate/launch.h"
#else

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#define SDA_FAST_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(sda_fast, CUDA, m)

namespace sda_fast::cuda {

constexpr int64_t kMostBlocks = 1 << 20;
constexpr int64_t kChunkBytes = 1 << 26;  // that windows' results take before they are composed

// The device of a tensor made the current one for a scope, and the stream that torch has current
// on it. Nothing here waits for the device: an operator may be captured in a graph.
struct Launch {
  explicit Launch(const Tensor& t) : guard(t.get_device_index()) {
    void* handle = nullptr;
    check(aoti_torch_get_current_cuda_stream(t.get_device_index(), &handle) == 0,
          "torch gave no current CUDA stream for device ", t.get_device_index(), ".");
    stream = static_cast<cudaStream_t>(handle);
  }

  // Launches a kernel, `name` being its operator's, with `shared` bytes of dynamic shared memory.
  template <typename... Parameters, typename... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                  size_t shared, const Arguments&... arguments) const {
    constexpr size_t kUnasked = 48 * 1024;  // more must be asked for
    cudaError_t error = cudaSuccess;
    if (shared > kUnasked) {
      // all that there is: the limit is the kernel's, and launches on other threads have theirs
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(most_shared()));
    }
    if (error == cudaSuccess) {
      cudaLaunchConfig_t config = {};
      config.gridDim = blocks;
      config.blockDim = threads;
      config.dynamicSmemBytes = shared;
      config.stream = stream;
      error = cudaLaunchKernelEx(&config, kernel, arguments...);
    }
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // or the next launch would be told of it again
    check(false, name, ": the CUDA launch failed: ", cudaGetErrorString(error), ".");
  }

  // The device's multiprocessors, and the bytes of shared memory that a block may ask for.
  int64_t processors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  size_t most_shared() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

  static int attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    const bool known = cudaGetDevice(&device) == cudaSuccess &&
                       cudaDeviceGetAttribute(&value, which, device) == cudaSuccess;
    check(known, "CUDA gives no attribute ", static_cast<int>(which), " of the device.");
    return value;
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

// On the device of `beside`.
inline Tensor allocate(const Tensor& beside, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(beside, sizes, type);
}

// Dense, and in the order of t where that is dense too.
inline Tensor allocate_like(const Tensor& t) { return torch::stable::empty_like(t); }

}  // namespace sda_fast::cuda

#endif

namespace sda_fast::cuda {

// Thread blocks for n work items at `per_block` a block. Kernels stride over what is left.
inline unsigned int blocks_for(int64_t n, int64_t per_block = kThreads) {
  return static_cast<unsigned int>(std::clamp<int64_t>((n - 1) / per_block + 1, 1, kMostBlocks));
}

// Whether an array may be read and written 16 bytes at a time.
inline bool is_aligned(const void* array) { return reinterpret_cast<uintptr_t>(array) % 16 == 0; }

// Whether every sample of an aligned array (batch, size) is aligned too.
inline bool samples_aligned(int64_t batch, int64_t size) { return size % 4 == 0 || batch == 1; }

}  // namespace sda_fast::cuda
