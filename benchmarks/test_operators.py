"""Times every operator, native against eager PyTorch and what torch.compile makes of it.

    pytest benchmarks --benchmark-only --benchmark-group-by=group

`python -m benchmarks.operators` writes docs/operators.md, with the errors of all types.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sda_fast import ops

from .cases import CASES, SIZES, Case
from .turns import Work
from .workloads import relative_error

SLOW = pytest.mark.slow


def operator_work(case: Case, size: str, dtype: torch.dtype, device: str) -> Work:
    """Returns what is timed; what draws noise of its own is compared by `test_ops` instead."""
    args = case.arguments(size, dtype, device)
    sides: dict[str, Callable[..., object]] = {"eager": case.eager, "native": case.native}
    sides["compiled"] = torch.compile(case.eager, dynamic=False)

    def run(code: str) -> object:
        with torch.no_grad(), ops.backend("native"):
            return sides[code](*args)

    def results(code: str) -> list[Tensor]:
        with torch.no_grad(), ops.backend("native"):
            return case.results(sides[code], *args)

    def error(code: str) -> float:
        pairs = zip(results(code), results("eager"), strict=True)
        # a sparse map's result is flat
        return max(relative_error(x, y.reshape(x.shape)) for x, y in pairs)

    with torch.no_grad(), ops.backend("native"):
        moved = case.moved(*args)
    return Work(
        {code: partial(run, code) for code in sides},
        None if case.draws else error,
        bytes=moved,
        in_place=case.changed > 0 and case.read is None,
        limit=1e-4 if dtype.itemsize > 2 else 5e-2,
    )


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (torch.float32, "eager"),
        pytest.param(torch.float32, "compiled", marks=SLOW),
        (torch.float32, "native"),
        pytest.param(torch.bfloat16, "eager", marks=SLOW),
        pytest.param(torch.bfloat16, "native", marks=SLOW),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_operator(timed, device: str, case: Case, size: str, dtype: torch.dtype, code: str):
    title = f"{case.title} {size} {str(dtype)[6:]}"
    timed(title, lambda: operator_work(case, size, dtype, device))
