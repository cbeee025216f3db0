// Compiled once per instruction set like loops.cpp, but with contraction. All of it is arithmetic
// on whole vectors, so a result does not depend on where in a tile it is computed.

#include "loops.h"

namespace sda_fast::SDA_FAST_VARIANT {

template <typename T>
constexpr FieldLoops<T> fields() {
  return {norm_pad<T>, norm_pad_vjp<T>, activation_pad<T>};
}

extern const TileTable tile_table;  // as in loops.cpp
constinit const TileTable tile_table = {kBfloat16,        mlp_tiles,        mlp_scratch,
                                        mlp_run,          winograd_scratch, winograd_run,
                                        fields<float>(),  fields<double>(), fields<BFloat16>(),
                                        fields<Float16>()};

}  // namespace sda_fast::SDA_FAST_VARIANT
