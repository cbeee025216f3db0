"""What all suites share: the machine's facts and floors go into pytest-benchmark's JSON."""

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest
import torch

from sda_fast import _native

from .probe import measure
from .workloads import matmul_precision

_load_before = os.getloadavg()[0]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Measures the floors, in the run that is held against them, and the machine's load."""
    machine_info["sda_fast"] = {
        "native": _native.info(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "floors": asdict(measure()),
        "load": [_load_before, os.getloadavg()[0]],
    }


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., None]:
    """Times a function: `timed(group, code, run, flops=..., bytes=..., **rounds)`.

    A code whose name ends with bfloat16 may round the factors of matrix products to it.
    """

    def time(
        group: str, code: str, run: Callable[[], Any], flops: int = 0, bytes: int = 0, **rounds: Any
    ) -> None:
        half = code.endswith("bfloat16")
        benchmark.group = f"{group} ({torch.get_num_threads()} threads)"
        benchmark.extra_info.update(code=code, flops=flops, bytes=bytes, bfloat16=half)
        with matmul_precision("medium" if half else "highest"):
            call = partial(benchmark.pedantic, **rounds) if rounds else benchmark
            call(run)

    return time
