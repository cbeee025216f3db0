"""Times every operator, native against eager PyTorch.

    pytest benchmarks --benchmark-only --benchmark-group-by=group

Both sides of a group run in one process, on the same arguments; `python -m benchmarks.operators`
lets them take turns, and writes docs/operators.md.
"""

import pytest
import torch

from sda_fast import ops

from .cases import CASES, SIZES, Case


@pytest.mark.parametrize("side", ["native", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_operator(benchmark, case: Case, size: str, dtype: torch.dtype, side: str):
    args = case.arguments(size, dtype)
    threads = torch.get_num_threads()
    benchmark.group = f"{case.title} {size} {str(dtype)[6:]} ({threads} threads)"
    with torch.no_grad(), ops.backend("native"):
        benchmark(getattr(case, side), *args)
