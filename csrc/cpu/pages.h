#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sda_fast::cpu {

// A new tensor that is about to be written as a whole, its memory in huge pages where the system
// gives them to those who ask: to map fresh memory by 4 kB takes several times as long as to fill
// it. Only whole huge pages are asked for, so that the tensor takes no more memory than before.
inline torch::stable::Tensor in_huge_pages(torch::stable::Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(t.numel()) * t.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  // advice: where it is not taken, all is as it was
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return t;
}

inline torch::stable::Tensor allocate_strided(const torch::stable::Tensor& beside,
                                              torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                              torch::headeronly::IntHeaderOnlyArrayRef strides) {
  int32_t dtype;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(beside.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return in_huge_pages(torch::stable::Tensor(handle));
}

// Of the dtype of `beside`. Torch is asked directly: its dispatcher takes longer than all else that
// is done for a small tensor.
inline torch::stable::Tensor allocate(const torch::stable::Tensor& beside,
                                      torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t numel = 1;
  bool overflow = false;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = numel;
    overflow |= __builtin_mul_overflow(numel, sizes[d], &numel);
  }
  if (overflow || numel == 0) return torch::stable::new_empty(beside, sizes);
  return allocate_strided(beside, sizes, strides);
}

// Dense, and in the order of t where that is dense too.
inline torch::stable::Tensor allocate_like(const torch::stable::Tensor& t) {
  if (t.is_contiguous() && t.numel() > 0) return allocate_strided(t, t.sizes(), t.strides());
  return in_huge_pages(torch::stable::empty_like(t));
}

}  // namespace sda_fast::cpu
