// Compiled once per instruction set, with SDA_FAST_VARIANT naming it and the flags that allow it.
// Nothing of the C++ library may be included here: see kernels/config.h.

#include "loops.h"

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
constexpr Loops<T> all() {
  return {gather<T>,
          compose<T>,
          linear<T>,
          philox_normal<T>,
          langevin_sums<T>,
          langevin_reduce<T>,
          langevin<T>,
          subsample<T>,
          subsample_adjoint<T>,
          residual<T>,
          sparse_map<T>,
          block_mean<T>,
          block_mean_adjoint<T>};
}

extern const LoopTable table;  // constants are otherwise local to their file
constinit const LoopTable table = {all<float>(), all<double>(), all<BFloat16>(), all<Float16>()};

}  // namespace sda_fast::SDA_FAST_VARIANT
