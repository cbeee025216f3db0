#include "../kernels/compose.h"

#include <torch/csrc/stable/library.h>

#include "launch.h"

namespace sda_fast::cuda {

Tensor compose(const Tensor& windows, const Tensor& start, const Tensor& weight, int64_t length) {
  check_state("windows", windows, 3);
  check_plan(start, weight, "windows", windows);
  const int64_t channels = check_windows(windows, weight, length);
  const Launch launch(windows);
  const Tensor rows = torch::stable::contiguous(windows);
  const Tensor starts = torch::stable::contiguous(start);
  const Tensor weights = torch::stable::contiguous(weight);

  const Tensor out =
      torch::stable::new_empty(windows, sizes({windows.size(0), length, channels}, windows, 3));
  if (out.numel() == 0) return out;

  dispatch(windows, [&]<typename T>(T) {
    const Compose<T> args = {static_cast<const T*>(rows.data_ptr()),
                             static_cast<const int64_t*>(starts.data_ptr()),
                             static_cast<const int8_t*>(weights.data_ptr()),
                             static_cast<T*>(out.data_ptr()),
                             windows.size(0),
                             length,
                             weight.size(0),
                             weight.size(1),
                             channels * size_from(windows, 3)};
    compose_kernel<T><<<blocks_for(out.numel()), kLaunchThreads, 0, launch.stream>>>(args);
    check_launch("compose");
  });
  return out;
}

}  // namespace sda_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CUDA, m) {
  m.impl("compose", TORCH_BOX(&sda_fast::cuda::compose));
}
