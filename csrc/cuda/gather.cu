#include "../kernels/gather.h"

#include <torch/csrc/stable/library.h>

#include "launch.h"

namespace sda_fast::cuda {

Tensor gather(const Tensor& x, const Tensor& start, const Tensor& weight) {
  check_state("x", x, 3);
  check_plan(start, weight, "x", x);
  const Launch launch(x);
  const Tensor states = torch::stable::contiguous(x);
  const Tensor starts = torch::stable::contiguous(start);
  const Tensor weights = torch::stable::contiguous(weight);

  const int64_t count = weight.size(0), window = weight.size(1);
  const Tensor out =
      torch::stable::new_empty(x, sizes({x.size(0), count, window * x.size(2)}, x, 3));
  if (out.numel() == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    const Gather<T> args = {static_cast<const T*>(states.data_ptr()),
                            static_cast<const int64_t*>(starts.data_ptr()),
                            static_cast<const int8_t*>(weights.data_ptr()),
                            static_cast<T*>(out.data_ptr()),
                            x.size(0),
                            x.size(1),
                            count,
                            window,
                            size_from(x, 2)};
    gather_kernel<T><<<blocks_for(out.numel()), kLaunchThreads, 0, launch.stream>>>(args);
    check_launch("gather");
  });
  return out;
}

}  // namespace sda_fast::cuda

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CUDA, m) {
  m.impl("gather", TORCH_BOX(&sda_fast::cuda::gather));
}
