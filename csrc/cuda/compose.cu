#include "../kernels/compose.h"

#include <torch/csrc/stable/library.h>

#include "launch.h"

namespace sda_fast::cuda {
namespace {

// Floor: (length + rows) row sizeof(T) bytes a trajectory: its states, and the windows' rows of
// non-zero weight, once each.
template <typename T>
void run(const Launch& launch, const Compose<T>& args) {
  const int64_t total = args.batch * args.length * args.row;
  launch("compose", compose_kernel<T>, blocks_for(total), kThreads, 0, args);
}

}  // namespace

Tensor compose(const Tensor& windows, const Tensor& start, const Tensor& weight, int64_t length) {
  check_state("windows", windows, 3);
  check_plan(start, weight, "windows", windows);
  const int64_t channels = check_windows(windows, weight, length);
  const Launch launch(windows);
  const Tensor rows = with_rows(windows, 2);
  const Tensor starts = as_contiguous(start);
  const Tensor weights = as_contiguous(weight);

  const Tensor out = allocate(windows, sizes({windows.size(0), length, channels}, windows, 3),
                              windows.scalar_type());
  if (out.numel() == 0) return out;

  dispatch(windows, [&]<typename T>(T) {
    const Compose<T> c = {static_cast<const T*>(rows.data_ptr()),
                          static_cast<const int64_t*>(starts.data_ptr()),
                          static_cast<const int8_t*>(weights.data_ptr()),
                          static_cast<T*>(out.data_ptr()),
                          windows.size(0),
                          length,
                          weight.size(0),
                          weight.size(1),
                          channels * size_from(windows, 3),
                          step_along(rows, 0),
                          step_along(rows, 1)};
    if (c.row % 4 == 0 && c.batch_stride % 4 == 0 && c.window_stride % 4 == 0 &&
        is_aligned(c.windows) && is_aligned(c.out)) {
      run<Quad<T>>(launch, {reinterpret_cast<const Quad<T>*>(c.windows), c.start, c.weight,
                            reinterpret_cast<Quad<T>*>(c.out), c.batch, c.length, c.count, c.window,
                            c.row / 4, c.batch_stride / 4, c.window_stride / 4});
    } else {
      run(launch, c);
    }
  });
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("compose", TORCH_BOX(&sda_fast::cuda::compose)); }
