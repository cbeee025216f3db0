#include <torch/csrc/stable/library.h>

#include "../observe.h"
#include "loops.h"
#include "pages.h"
#include "parallel.h"

namespace sda_fast::cpu {
namespace {

// What a map's numbers must be, where looking at them costs no wait for a device.
void check_map_values(const SparseOperands& of) {
  const auto* row = static_cast<const int64_t*>(of.row.data_ptr());
  const auto* column = static_cast<const int64_t*>(of.column.data_ptr());
  check(row[0] == 0 && row[of.rows] == of.entries, "row must be from 0 to the ", of.entries,
        " number(s) of column, but is from ", row[0], " to ", row[of.rows], ".");
  for (int64_t m = 0; m < of.rows; ++m) {
    check(row[m + 1] >= row[m], "row must be ascending, but row[", m + 1, "] is ", row[m + 1],
          " after ", row[m], ".");
  }
  for (int64_t j = 0; j < of.entries; ++j) {
    check(column[j] >= 0 && column[j] < of.columns, "column must be at least 0 and below the ",
          of.columns, " element(s) of a state, but column[", j, "] is ", column[j], ".");
  }
}

}  // namespace

Tensor sparse_map(const Tensor& x, const Tensor& row, const Tensor& column,
                  const std::optional<Tensor>& value, const std::optional<Tensor>&,
                  const std::optional<Tensor>&, const std::optional<Tensor>&) {
  const SparseOperands of(x, row, column, value);
  check_map_values(of);
  const Tensor out = allocate(x, {x.size(0), of.rows});
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
    const int64_t groups = args.batch / kSamples + args.batch % kSamples;
    const int64_t items = groups * of.rows;
    for_items(items, args.batch * (of.rows + of.entries) / items,
              [&](int64_t begin, int64_t end) { loops_of<T>().sparse_map(args, begin, end); });
  });
  return out;
}

}  // namespace sda_fast::cpu

STABLE_TORCH_LIBRARY_IMPL(sda_fast, CPU, m) {
  m.impl("sparse_map", TORCH_BOX(&sda_fast::cpu::sparse_map));
}
