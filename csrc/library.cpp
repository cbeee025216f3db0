// Every operator's schema, in one place, and the Python module `_C`: what is not an operator.
// The operators' meaning is in kernels/, their implementations in cpu/ and cuda/.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "cpu/fingerprint.h"
#include "cpu/isa.h"
#include "cpu/loops.h"
#include "kernels/normal.h"
#include "kernels/philox.h"

STABLE_TORCH_LIBRARY(sda_fast, m) {
  m.def("activation_pad(Tensor x, int? activation, int[] padding, Tensor? bias=None) -> Tensor");
  m.def(
      "activation_pad_vjp(Tensor cotangent, Tensor x, int? activation, int[] padding, "
      "Tensor? bias=None) -> Tensor");
  m.def("gather(Tensor x, Tensor start, Tensor weight) -> Tensor");
  m.def("compose(Tensor windows, Tensor start, Tensor weight, SymInt length) -> Tensor");
  m.def(
      "compose_denoise(Tensor windows, Tensor start, Tensor weight, Tensor x, float mu, "
      "float sigma) -> (Tensor, Tensor)");
  m.def("denoise(Tensor x, Tensor eps, float mu, float sigma) -> Tensor");
  m.def("predictor(Tensor x, Tensor eps, float r, float b) -> Tensor");
  m.def("predictor_(Tensor(a!) x, Tensor eps, float r, float b) -> ()");
  m.def("multistep(Tensor x, Tensor[] eps, float r, float[] b) -> Tensor");
  m.def("multistep_(Tensor(a!) x, Tensor[] eps, float r, float[] b) -> ()");
  m.def("guide(Tensor eps, Tensor direct, Tensor? through, float mu, float sigma) -> Tensor");
  m.def("guide_(Tensor(a!) eps, Tensor direct, Tensor? through, float mu, float sigma) -> ()");
  m.def(
      "guide_predictor_(Tensor(a!) x, Tensor(b!) eps, Tensor direct, Tensor? through, float mu, "
      "float sigma, float r, float b, Tensor[] past, float[] past_b) -> ()");
  m.def(
      "guide_langevin_(Tensor(a!) x, Tensor(b!) eps, Tensor direct, Tensor? through, float mu, "
      "float sigma, float tau, int seed, int step, int correction, int first_sample) -> ()");
  m.def(
      "langevin(Tensor x, Tensor eps, float sigma, float tau, int seed, int step, int correction, "
      "int first_sample) -> Tensor");
  m.def(
      "langevin_(Tensor(a!) x, Tensor eps, float sigma, float tau, int seed, int step, "
      "int correction, int first_sample) -> ()");
  m.def(
      "mlp_score(Tensor x, Tensor start, Tensor mask, Tensor weight, Tensor bias, Tensor weights, "
      "Tensor transposed, int[] widths, int activation, bool length_aware, bool bfloat16, "
      "bool tf32, SymInt kept_rows) -> (Tensor, Tensor)");
  m.def(
      "mlp_score_vjp(Tensor cotangent, Tensor x, Tensor start, Tensor mask, Tensor weight, "
      "Tensor bias, Tensor weights, Tensor transposed, Tensor kept, int[] widths, int activation, "
      "bool length_aware, bool bfloat16, bool tf32) -> Tensor");
  m.def(
      "norm_pad(Tensor x, Tensor? shift, int[] padding, int[] upsample, float eps) -> "
      "(Tensor, Tensor)");
  m.def(
      "norm_pad_vjp(Tensor cotangent, Tensor normed, Tensor scale, Tensor? residual, "
      "int[] padding, int[] upsample) -> Tensor");
  m.def(
      "philox_normal_(Tensor(a!) out, int seed, int step, int correction, int first_sample) -> ()");
  m.def("subsample(Tensor x, int[] start, int[] step, int[] size) -> Tensor");
  m.def("subsample_adjoint(Tensor y, int[] start, int[] step, int[] shape) -> Tensor");
  m.def(
      "sparse_map(Tensor x, Tensor row, Tensor column, Tensor? value, Tensor? transposed_row=None, "
      "Tensor? transposed_column=None, Tensor? transposed_value=None) -> Tensor");
  m.def("block_mean(Tensor x, int[] block) -> Tensor");
  m.def("block_mean_adjoint(Tensor y, int[] block) -> Tensor");
  m.def("residual(Tensor y, Tensor prediction, Tensor std, Tensor gamma, float ratio) -> Tensor");
  m.def("winograd(Tensor x, Tensor kernel, Tensor? bias, int[] padding) -> Tensor");
  m.def("winograd_(Tensor(a!) onto, Tensor x, Tensor kernel, Tensor? bias, int[] padding) -> ()");
}

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = SDA_FAST_VERSION;
#if defined(__clang__)
  info["compiler"] = "Clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "GCC " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["torch"] = TORCH_VERSION;
  info["cuda"] = SDA_FAST_CUDA_VERSION[0] != '\0';
  info["cuda_version"] = SDA_FAST_CUDA_VERSION;
  info["cuda_architectures"] = SDA_FAST_CUDA_ARCHITECTURES;
  return info;
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  const auto w = sda_fast::portable::philox({c[0], c[1], c[2], c[3]}, key[0], key[1]);
  return {w.w0, w.w1, w.w2, w.w3};
}

std::tuple<float, float, double, double> normals(uint32_t a, uint32_t b) {
  std::tuple<float, float, double, double> n;
  sda_fast::portable::normal_pair(a, b, std::get<0>(n), std::get<1>(n));
  sda_fast::portable::normal_pair(a, b, std::get<2>(n), std::get<3>(n));
  return n;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What sda_fast's native library says about itself.";
  m.def("build_info", &build_info,
        "Version, compiler, torch built against; whether the CUDA library was built, by which "
        "toolkit and for which architectures.");
  m.def("isa", &sda_fast::isa,
        "The instruction set of the CPU loops in use: avx512bf16, avx512, avx2 or baseline.");
  m.def(
      "has_bfloat16", [] { return sda_fast::tiles().bfloat16; },
      "Whether the instruction set in use has products in bfloat16.");
  m.def(
      "fingerprint",
      [](uintptr_t address, size_t bytes) {
        return sda_fast::cpu::fingerprint(reinterpret_cast<const void*>(address), bytes);
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("address"), py::arg("bytes"),
      "A number of the contents of memory, by which they are told from others.");
  m.def("philox", &philox, py::arg("ctr"), py::arg("key"),
        "Four random words of Philox4x32-10, of a counter of four words and a key of two.");
  m.def("normals", &normals, py::arg("a"), py::arg("b"),
        "The two normal numbers of a pair of words, in float32 and then in float64.");
  sda_fast::isa();  // a bad SDA_FAST_ISA fails the import, not a later operator
}
