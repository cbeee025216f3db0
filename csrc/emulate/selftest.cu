// What only the tests of the emulator use: kernels that do what CUDA defines, a kernel with a
// choice of bugs that must not go unseen, and operators that set the emulator up.

#include <torch/csrc/stable/library.h>

#include "../cuda/launch.h"
#include "../kernels/matrix.h"
#include "../kernels/quad.h"

namespace sda_fast::cuda {
namespace {

// Whether lanes [first, first + count), which shared memory serves at once, each access `bytes`
// bytes of a row of factors in banks of their own. row, input: of a lane, the first that it wants.
template <int kBytes>
constexpr bool apart(int first, int count, int bytes, int (*row)(int), int (*input)(int)) {
  uint32_t taken = 0;
  for (int lane = first; lane < first + count; ++lane) {
    const int at = input(lane) * kBytes, piece = at / 16 ^ swizzle(row(lane));
    for (int byte = 0; byte < bytes; byte += 4) {
      const uint32_t bank = 1u << (16 * piece + at % 16 + byte) / 4 % 32;
      if ((taken & bank) != 0) return false;
      taken |= bank;
    }
  }
  return true;
}

// What matrix.h says of its loads and stores, of a step and a tile of features.
constexpr bool no_bank_twice() {
  bool all = true;
  for (int first = 0; first < 32; first += 8) {
    all &= apart<2>(
        first, 8, 16, [](int lane) { return lane / 4; }, [](int lane) { return lane % 4 * 8; });
  }
  for (const auto row :
       {+[](int lane) { return lane % 4 * 2; }, +[](int lane) { return lane % 4 * 2 + 1; }}) {
    const auto feature = [](int lane) { return lane / 4 * 2; };
    all &= apart<4>(0, 4, 16, row, [](int) { return 0; });  // the same for all g
    all &= apart<2>(0, 32, 4, row, feature);
    for (int first = 0; first < 32; first += 16) all &= apart<4>(first, 16, 8, row, feature);
  }
  return all;
}
static_assert(no_bank_twice());

enum Bug : int64_t {
  kNone,
  kReadBeyond,       // an off-by-one bound of a load
  kWriteBeyond,      // and of a store
  kNoBarrier,        // between writing shared memory and reading what others wrote
  kNoSecondBarrier,  // before it is written again
  kTwoBarriers,      // half of the block at another one
  kReturn,           // some threads return before the barrier
  kNeverWritten,     // an element of shared memory
  kIndex,            // beyond a shared array
  kMisaligned,       // 16 bytes at a time from an array that is not aligned
  kMask,             // lanes take part in a shuffle that are not in its mask
  kLane,             // a shuffle reads a lane that takes no part
  kDynamic,          // a store beyond the dynamic shared memory
};

// Turns each run of kThreads elements of x round.
__global__ void __launch_bounds__(kThreads)
    planted_kernel(const float* x, float* out, int64_t n, int64_t bug) {
  __shared__ float shared[kThreads];
  auto* dynamic = dynamic_shared<float>();
  const int64_t thread = threadIdx.x, stride = int64_t{gridDim.x} * kThreads;
  for (int64_t first = int64_t{blockIdx.x} * kThreads; first < n; first += stride) {
    const int64_t i = first + thread, size = n - first < kThreads ? n - first : kThreads;
    if (bug == kReturn && i >= n) return;

    float value = 0.0f;
    if (i < n || (bug == kReadBeyond && i == n)) value = x[i];
    if (bug == kMisaligned) value += load_quad<true>(x + 1, 4).v[0];
    if (!(bug == kNeverWritten && thread == 0)) shared[thread + (bug == kIndex ? 1 : 0)] = value;
    dynamic[thread + (bug == kDynamic ? 1 : 0)] = value;
    if (bug == kTwoBarriers && thread >= kThreads / 2) {
      __syncthreads();
    } else if (bug != kNoBarrier) {
      __syncthreads();
    }

    float other = 0.0f;
    if (i < n) other = shared[size - 1 - thread] + 0.0f * dynamic[size - 1 - thread];
    const unsigned int mask = bug == kMask ? 0xFFFFu : ~0u;
    if (bug == kLane) {
      if (thread % 32 < 16) other = __shfl_sync(0xFFFFu, other, 16);
    } else {
      other = __shfl_xor_sync(mask, __shfl_xor_sync(mask, other, 5), 5);
    }
    if (i < n || (bug == kWriteBeyond && i == n)) out[i] = other;
    if (bug != kNoSecondBarrier) __syncthreads();
  }
}

Tensor planted(const Tensor& x, int64_t bug) {
  const Launch launch(x);
  const Tensor out = allocate_like(x);
  launch("planted", planted_kernel, std::min(3u, blocks_for(x.numel())), kThreads,
         kThreads * sizeof(float), static_cast<const float*>(x.data_ptr()),
         static_cast<float*>(out.data_ptr()), x.numel(), bug);
  return out;
}

// out (blocks, threads, 12): what a thread of a grid and a block of three dimensions gets from its
// warp; total: what all of them count.
__global__ void collectives_kernel(const int* x, int* out, int* total) {
  const int blocks = gridDim.x * gridDim.y * gridDim.z,
            threads = blockDim.x * blockDim.y * blockDim.z;
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int value = x[block * threads + thread];
  const double wide = __shfl_sync(~0u, value + 0.5, 0);
  int* mine = out + (block * threads + thread) * 12;
  mine[0] = __shfl_sync(~0u, value, 3);
  mine[1] = __shfl_sync(~0u, value, 9, 8);
  mine[2] = __shfl_up_sync(~0u, value, 1);
  mine[3] = __shfl_down_sync(~0u, value, 2, 16);
  mine[4] = __shfl_xor_sync(~0u, value, 5);
  mine[5] = static_cast<int>(__ballot_sync(~0u, value > 0));
  mine[6] = __any_sync(~0u, value > 90);
  mine[7] = __all_sync(~0u, value > -90);
  if (thread % 2 == 0) {
    mine[8] = __shfl_xor_sync(0x55555555u, value, 2);
  } else {
    mine[8] = __shfl_xor_sync(0xAAAAAAAAu, value, 4);
  }
  __syncwarp();
  mine[9] = __popc(__float_as_uint(static_cast<float>(value)));
  mine[10] = static_cast<int>(2.0 * wide);
  mine[11] = blocks;
  atomicAdd(total, value);
  atomicMax(total + 1, value);
  atomicMin(total + 2, value);
}

std::tuple<Tensor, Tensor> collectives(const Tensor& x) {
  const Launch launch(x);
  const Tensor out = allocate(x, {x.size(0), x.size(1), 12}, ScalarType::Int);
  Tensor total = allocate(x, {3}, ScalarType::Int);
  torch::stable::zero_(total);
  const auto half = static_cast<unsigned int>(x.size(0) / 2);
  const auto quarter = static_cast<unsigned int>(x.size(1) / 4);
  launch("collectives", collectives_kernel, dim3(half, 1, 2), dim3(quarter, 2, 2), 0,
         static_cast<const int*>(x.data_ptr()), static_cast<int*>(out.data_ptr()),
         static_cast<int*>(total.data_ptr()));
  return {out, total};
}

// A copy whose end is the end of what may be touched, but for a gap that makes it aligned or odd.
Tensor guarded(const Tensor& x, bool odd) {
  const Tensor copy = emulate::empty({x.sizes().begin(), x.sizes().end()}, x.scalar_type(), odd);
  torch::stable::copy_(const_cast<Tensor&>(copy), x);
  return copy;
}

void seed(int64_t number) { emulate::seed(static_cast<uint64_t>(number)); }

}  // namespace
}  // namespace sda_fast::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(sda_fast_emulate, m) {
  m.def("collectives(Tensor x) -> (Tensor, Tensor)");
  m.def("planted(Tensor x, int bug) -> Tensor");
  m.def("guarded(Tensor x, bool odd) -> Tensor");
  m.def("seed(int number) -> ()");
}

SDA_FAST_CUDA_IMPL(m) {
  m.impl("collectives", TORCH_BOX(&sda_fast::cuda::collectives));
  m.impl("planted", TORCH_BOX(&sda_fast::cuda::planted));
  m.impl("guarded", TORCH_BOX(&sda_fast::cuda::guarded));
}

STABLE_TORCH_LIBRARY_IMPL(sda_fast_emulate, CompositeExplicitAutograd, m) {
  m.impl("seed", TORCH_BOX(&sda_fast::cuda::seed));
}
