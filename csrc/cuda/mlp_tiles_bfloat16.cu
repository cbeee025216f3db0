#include "mlp_tiles.h"

namespace sda_fast::cuda {

bool mlp_tiles_bfloat16(const Launch& launch, const MlpScore& args, MlpTile tile, int widest,
                        const Tensor& x) {
  return mlp_tiles_of<BFloat16Products>(launch, args, tile, widest, x);
}

}  // namespace sda_fast::cuda
