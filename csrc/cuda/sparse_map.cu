#include "../kernels/sparse_map.h"

#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "launch.h"

namespace sda_fast::cuda {

// Floor: sizeof(T) bytes an element of y, a sector of 32 bytes for each place of x that has no
// neighbour in the map, and the map itself once: samples after the first find it in the cache.
Tensor sparse_map(const Tensor& x, const Tensor& row, const Tensor& column,
                  const std::optional<Tensor>& value, const std::optional<Tensor>&,
                  const std::optional<Tensor>&, const std::optional<Tensor>&) {
  const SparseOperands of(x, row, column, value);
  const Launch launch(x);
  const Tensor out = allocate(x, {x.size(0), of.rows}, x.scalar_type());
  if (out.numel() == 0) return out;

  dispatch(x, [&]<typename T>(T) {
    const SparseMap<T> args = {
        static_cast<const T*>(of.x.data_ptr()),
        static_cast<const int64_t*>(of.row.data_ptr()),
        static_cast<const int64_t*>(of.column.data_ptr()),
        of.value ? static_cast<const Accumulate<T>*>(of.value->data_ptr()) : nullptr,
        static_cast<T*>(out.data_ptr()),
        x.size(0),
        of.columns,
        of.rows,
        of.entries};
    launch("sparse_map", sparse_map_kernel<T>, blocks_for(out.numel()), kThreads, 0, args);
  });
  return out;
}

}  // namespace sda_fast::cuda

SDA_FAST_CUDA_IMPL(m) { m.impl("sparse_map", TORCH_BOX(&sda_fast::cuda::sparse_map)); }
