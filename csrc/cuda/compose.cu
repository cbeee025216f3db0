#include "compose.h"

#include <torch/csrc/stable/library.h>

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
  const ComposeOperands of(windows, start, weight, length);
  const Launch launch(windows);
  const Tensor out = allocate(windows, of.result_sizes(), windows.scalar_type());
  if (out.numel() == 0) return out;

  dispatch(windows, [&]<typename T>(T) {
    const Compose<T> c = compose_args<T>(of, out);
    if (has_quads(c)) {
      run(launch, in_quads(c));
    } else {
      run(launch, c);
    }
  });
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("compose", TORCH_BOX(&sda_fast::cuda::compose)); }
