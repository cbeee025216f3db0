#include "../kernels/philox_normal.h"

#include <torch/csrc/stable/library.h>

#include "launch.h"

namespace sda_fast::cuda {

void philox_normal_(const Tensor& out, int64_t seed, int64_t step, int64_t correction,
                    int64_t first_sample) {
  check_state("out", out, 1);
  const NoiseKey key = check_noise(out, seed, step, correction, first_sample);
  if (out.numel() == 0) return;

  const Launch launch(out);
  InPlace target(out, "out");
  dispatch(out, [&]<typename T>(T) {
    const PhiloxNormal<T> args = {static_cast<T*>(target.work.data_ptr()), out.size(0),
                                  size_from(out, 1), key, static_cast<uint32_t>(first_sample)};
    const int64_t quads = args.batch * ((args.size + 3) / 4);
    const bool aligned = is_aligned(args.out) && samples_aligned(args.batch, args.size);
    const auto kernel = aligned ? philox_normal_kernel<T, true> : philox_normal_kernel<T, false>;
    // Floor: sizeof(T) bytes an element: out, once.
    launch("philox_normal_", kernel, blocks_for(quads), kThreads, 0, args);
  });
  target.finish();
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("philox_normal_", TORCH_BOX(&sda_fast::cuda::philox_normal_)); }
