"""The page of the operators: that it has each of them, and that its errors are within rounding."""

from pathlib import Path

import pytest
import torch

from benchmarks import operators
from benchmarks.cases import CASES, DTYPES, Case
from sda_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

LARGEST = {torch.float32: 1e-6, torch.float64: 2e-15, torch.bfloat16: 0.51, torch.float16: 0.51}


def test_every_operator_is_measured() -> None:
    names = {case.operator for case in CASES}
    assert names | set(operators.ELSEWHERE) == operators.operators()
    page = operators.PAGE.read_text()
    assert [name for name in names if f"| {name} " not in page] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=operators.short)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_error(case: Case, dtype: torch.dtype) -> None:
    # the second result follows the first as it is stored, rounded
    slack = 40 if dtype.itemsize == 2 and case.changed == 2 else 1
    assert operators.error(case, "medium", dtype) < slack * LARGEST[dtype]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_eager_is_the_same(case: Case) -> None:
    """What is timed beside an operator computes what it does, or as much: noise differs."""
    args = case.arguments("medium", torch.float64)
    results = case.results(case.native, *args)
    eager = case.results(case.eager, *args)
    for result, other in zip(results, eager, strict=True):
        other = other.reshape(result.shape)  # a sparse matrix gives vectors
        if not case.keywords:
            torch.testing.assert_close(other, result)


def test_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.md"
    arguments = ["operators", "--quick", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(operators, "SMALL_CALLS", 1)
    operators.main()

    page = out.read_text()
    for case in CASES:
        assert page.count(f"| {case.title} |") == 4
    assert list(tmp_path.iterdir()) == [out]
