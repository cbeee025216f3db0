#include "mlp_tiles.h"

namespace sda_fast::cuda {

bool mlp_tiles_float32(const Launch& launch, const MlpScore& args, MlpTile tile, int widest,
                       const Tensor& x) {
  return mlp_tiles_of<Float32Products>(launch, args, tile, widest, x);
}

}  // namespace sda_fast::cuda
