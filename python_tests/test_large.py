"""More than 2^31 elements: no index is a 32-bit number. The states are bfloat16, 4.3 GB of them."""

import os

import pytest
import torch
from torch import Tensor

from sda_fast import _native, ops, reference


def available() -> int:
    """Returns how much memory may be had, in bytes."""
    try:
        with open("/proc/meminfo") as lines:
            return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _native.available, reason=str(_native.reason)),
    pytest.mark.skipif(available() < 16 * 2**30, reason="there are less than 16 GiB of memory"),
]

STREAM = {"seed": 5, "step": 7, "correction": 3}
SAMPLES, SIZE = 2**15 + 3, 2**16  # 2^31 elements, and three samples more
PARTS = (slice(0, 2), slice(2**14, 2**14 + 2), slice(2**15 - 1, SAMPLES))


def close(result: Tensor, expected: Tensor) -> None:
    """Compares to the rounding of bfloat16."""
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=3e-6)


def noise(part: slice) -> Tensor:
    z = torch.zeros(part.stop - part.start, SIZE, dtype=torch.float64)
    reference.philox_normal_(z, first_sample=100 + part.start, **STREAM)
    return z


def test_elementwise() -> None:
    """One array serves them all: filled with noise, then stepped in place, as its own estimate."""
    x = torch.empty(SAMPLES, SIZE, dtype=torch.bfloat16)
    with ops.backend("native"):
        ops.philox_normal_(x, first_sample=100, **STREAM)
        for part in PARTS:
            close(x[part], noise(part))

        before = [x[part].double() for part in PARTS]
        ops.predictor_(x, x, 0.9, -0.3)
        for part, y in zip(PARTS, before, strict=True):
            close(x[part], reference.predictor(y, y, 0.9, -0.3))

        before = [x[part].double() for part in PARTS]
        ops.langevin_(x, x, 0.3, 0.5, first_sample=100, **STREAM)
        for part, y in zip(PARTS, before, strict=True):
            first = {"first_sample": 100 + part.start}
            close(x[part], reference.langevin(y, y, 0.3, 0.5, **first, **STREAM))


def test_one_sample() -> None:
    """A sample that is itself so large, and not a whole number of blocks."""
    x = torch.empty(2**31 + 4097, dtype=torch.bfloat16)
    with ops.backend("native"):
        ops.philox_normal_(x, batch_dims=0, **STREAM)
        assert abs(x[-4099:].double().std().item() - 1) < 0.05
        z = x[-4099:].double()
        ops.langevin_(x, x, 0.5, 0.5, batch_dims=0, **STREAM)
    # z has variance 1, so that delta is 1/2, up to 2^-15, and x' = z - (z / 2 + z) / 2
    torch.testing.assert_close(x[-4099:].double(), z / 4, rtol=2**-6, atol=2**-7)


def test_windows() -> None:
    """Windows at the end of a trajectory of more than 2^31 numbers, and their composition."""
    length, channels, window = 2**20 + 8, 2**11, 5
    start = torch.tensor([0, 2**19, length - 7, length - 5])
    weight = torch.ones(4, window, dtype=torch.int8)
    weight[2] = -1
    windows = torch.randn(1, 4, window * channels, dtype=torch.bfloat16)

    with ops.backend("native"):
        x = ops.compose(windows, start, weight, length)
        for begin, end in ((0, 9), (2**19 - 2, 2**19 + 7), (length - 9, length)):
            inside = [n for n, s in enumerate(start.tolist()) if begin <= s < end]
            expected = reference.compose(
                windows[:, inside].double(), start[inside] - begin, weight[inside], end - begin
            )
            close(x[:, begin:end], expected)

        gathered = ops.gather(x, start, weight)
        for n, s in enumerate(start.tolist()):
            expected = weight[n, :, None] * x[0, s : s + window]
            assert torch.equal(gathered[0, n], expected.flatten())
