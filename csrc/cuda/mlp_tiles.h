#pragma once

// How mlp_score is launched: which tile a thread block takes. The kernels of a precision are in a
// file of their own, as they take long to compile.

#include "../kernels/mlp_tile.h"
#include "launch.h"

namespace sda_fast::cuda {

// Evaluates the windows of a chunk, and returns whether a tile of them fits into shared memory.
bool mlp_tiles_float32(const Launch&, const MlpScore&, MlpTile, int widest, const Tensor& x);
bool mlp_tiles_tf32(const Launch&, const MlpScore&, MlpTile, int widest, const Tensor& x);
bool mlp_tiles_bfloat16(const Launch&, const MlpScore&, MlpTile, int widest, const Tensor& x);

// A tile of 8 kRows windows and 16 kTiles features a warp. Where it is not the last to be tried,
// every processor must get one. (To be measured: 153 tiles on 132 processors take as long as 264,
// so that one of half as many windows may be faster.)
template <typename P, int kTiles, int kRows, int kAhead>
bool mlp_tiles(const Launch& launch, const MlpScore& args, MlpTile tile, int widest,
               const Tensor& x, bool last) {
  constexpr int64_t kWindows = kRows * kTileWindows;
  const int64_t total = args.batch * args.chunk, tiles = (total + kWindows - 1) / kWindows;
  const int64_t processors = launch.processors();
  const size_t shared = mlp_shared_bytes(tile, kWindows);
  const bool fits = widest <= kTiles * kWarps * kTileFeatures && shared <= launch.most_shared();
  if (!fits || (!last && tiles < processors)) return false;

  const int64_t blocks = std::min(tiles, processors);
  const int64_t apart = tile.vjp && total > args.kept_rows ? blocks * kWindows : 0;
  const Tensor scratch = allocate(x, {apart, tile.kept_numbers}, ScalarType::Float);
  tile.scratch = static_cast<float*>(scratch.data_ptr());
  launch("mlp_score", mlp_score_kernel<P, kTiles, kRows, kAhead>, blocks_for(blocks, 1), kThreads,
         shared, args, tile);
  return true;
}

// The last are for few windows, and for windows of very many numbers.
template <typename P>
bool mlp_tiles_of(const Launch& launch, const MlpScore& args, const MlpTile& tile, int widest,
                  const Tensor& x) {
  return mlp_tiles<P, 2, 8, 2>(launch, args, tile, widest, x, false) ||
         mlp_tiles<P, 4, 4, 2>(launch, args, tile, widest, x, false) ||
         mlp_tiles<P, 4, 1, 4>(launch, args, tile, widest, x, true) ||
         mlp_tiles<P, 17, 1, 0>(launch, args, tile, widest, x, true);
}

}  // namespace sda_fast::cuda
