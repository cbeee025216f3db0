#include "../kernels/gather.h"

#include <torch/csrc/stable/library.h>

#include "../windows.h"
#include "launch.h"

namespace sda_fast::cuda {
namespace {

// Floor: (length + count window) row sizeof(T) bytes a trajectory: its states and its windows,
// once each (a state in several windows is read again, from the cache).
template <typename T>
void run(const Launch& launch, const Gather<T>& args) {
  const int64_t total = args.batch * args.count * args.window * args.row;
  launch("gather", gather_kernel<T>, blocks_for(total), kThreads, 0, args);
}

}  // namespace

Tensor gather(const Tensor& x, const Tensor& start, const Tensor& weight) {
  const GatherOperands of(x, start, weight);
  const Launch launch(x);
  const Tensor out = allocate(x, of.result_sizes(), x.scalar_type());
  if (out.numel() == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    const Gather<T> g = gather_args<T>(of, out);
    if (g.row % 4 == 0 && g.batch_stride % 4 == 0 && g.time_stride % 4 == 0 && is_aligned(g.x) &&
        is_aligned(g.out)) {
      run<Quad<T>>(launch, {reinterpret_cast<const Quad<T>*>(g.x), g.start, g.weight,
                            reinterpret_cast<Quad<T>*>(g.out), g.batch, g.length, g.count, g.window,
                            g.row / 4, g.batch_stride / 4, g.time_stride / 4});
    } else {
      run(launch, g);
    }
  });
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("gather", TORCH_BOX(&sda_fast::cuda::gather)); }
