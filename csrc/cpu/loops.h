#pragma once

// The loops of the operators, as tables of functions: loops.cpp and tiles.cpp are compiled once per
// instruction set and define one table each time; isa.cpp chooses among them at run time.

#include "../kernels/activation_pad.h"
#include "../kernels/block_mean.h"
#include "../kernels/compose.h"
#include "../kernels/gather.h"
#include "../kernels/langevin.h"
#include "../kernels/linear.h"
#include "../kernels/mlp_score.h"
#include "../kernels/norm_pad.h"
#include "../kernels/philox_normal.h"
#include "../kernels/residual.h"
#include "../kernels/sparse_map.h"
#include "../kernels/subsample.h"
#include "../kernels/winograd.h"

namespace sda_fast {

// Each works on the items [begin, end) of its operator; what an item is, the kernel's header says.
template <typename T>
struct Loops {
  void (*gather)(const Gather<T>&, int64_t begin, int64_t end);
  void (*compose)(const Compose<T>&, const int64_t* only, int64_t begin, int64_t end);
  void (*linear)(const Linear<T>&, int64_t begin, int64_t end);
  void (*philox_normal)(const PhiloxNormal<T>&, int64_t begin, int64_t end);
  void (*langevin_sums)(const Langevin<T>&, double* scratch, int64_t begin, int64_t end);
  void (*langevin_reduce)(const Langevin<T>&, const double* scratch, Scales* scales);
  void (*langevin)(const Langevin<T>&, const Scales* scales, int64_t begin, int64_t end);
  void (*subsample)(const Subsample<T>&, int64_t begin, int64_t end);
  void (*subsample_adjoint)(const Subsample<T>&, int64_t begin, int64_t end);
  void (*residual)(const Residual<T>&, int64_t begin, int64_t end);
  void (*sparse_map)(const SparseMap<T>&, int64_t begin, int64_t end);
  void (*block_mean)(const BlockMean<T>&, int64_t begin, int64_t end);
  void (*block_mean_adjoint)(const BlockMean<T>&, int64_t begin, int64_t end);
};

struct LoopTable {
  Loops<float> float32;
  Loops<double> float64;
  Loops<BFloat16> bfloat16;
  Loops<Float16> float16;
};

// On fields: an item is a row.
template <typename T>
struct FieldLoops {
  void (*norm_pad)(const NormPad<T>&, int64_t begin, int64_t end);
  void (*norm_pad_vjp)(const NormPadVjp<T>&, int64_t begin, int64_t end);
  void (*activation_pad)(const ActivationPad<T>&, int64_t begin, int64_t end);
};

// Of tiles.cpp, which is compiled with contraction: products and sums become fused multiply-adds.
struct TileTable {
  bool bfloat16;  // whether there are products in bfloat16
  int64_t (*mlp_tiles)(const MlpScore&);
  int64_t (*mlp_scratch)(const MlpScore&, bool vjp);
  void (*mlp_run)(const MlpScore&, bool vjp, float* scratch, int64_t begin, int64_t end);
  int64_t (*winograd_scratch)(const Winograd&);
  void (*winograd_run)(const Winograd&, float* scratch, int64_t item);
  FieldLoops<float> float32;
  FieldLoops<double> float64;
  FieldLoops<BFloat16> bfloat16_fields;
  FieldLoops<Float16> float16;
};

namespace baseline {
extern const LoopTable table;
extern const TileTable tile_table;
}  // namespace baseline
#ifdef SDA_FAST_X86
namespace avx2 {
extern const LoopTable table;
extern const TileTable tile_table;
}  // namespace avx2
namespace avx512 {
extern const LoopTable table;
extern const TileTable tile_table;
}  // namespace avx512
namespace avx512bf16 {  // its other loops are those of avx512
extern const TileTable tile_table;
}
#endif

// The tables for the instruction set in use.
const LoopTable& loops();
const TileTable& tiles();

template <typename T>
const Loops<T>& loops_of();
template <>
inline const Loops<float>& loops_of<float>() {
  return loops().float32;
}
template <>
inline const Loops<double>& loops_of<double>() {
  return loops().float64;
}
template <>
inline const Loops<BFloat16>& loops_of<BFloat16>() {
  return loops().bfloat16;
}
template <>
inline const Loops<Float16>& loops_of<Float16>() {
  return loops().float16;
}

template <typename T>
const FieldLoops<T>& fields_of();
template <>
inline const FieldLoops<float>& fields_of<float>() {
  return tiles().float32;
}
template <>
inline const FieldLoops<double>& fields_of<double>() {
  return tiles().float64;
}
template <>
inline const FieldLoops<BFloat16>& fields_of<BFloat16>() {
  return tiles().bfloat16_fields;
}
template <>
inline const FieldLoops<Float16>& fields_of<Float16>() {
  return tiles().float16;
}

}  // namespace sda_fast
