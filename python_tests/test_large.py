"""More than 2^31 elements: no index is a 32-bit number. The states are bfloat16, 4.3 GB of them."""

import os
from collections.abc import Iterator
from typing import Any

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


def states() -> Tensor:
    """2^31 elements of noise, and some more."""
    x = torch.empty(SAMPLES, SIZE, dtype=torch.bfloat16)
    ops.philox_normal_(x, first_sample=100, **STREAM)
    return x


def noise(part: slice) -> Tensor:
    z = torch.zeros(part.stop - part.start, SIZE, dtype=torch.float64)
    reference.philox_normal_(z, first_sample=100 + part.start, **STREAM)
    return z


def test_elementwise() -> None:
    """One array serves them all: filled with noise, then stepped in place, as its own estimate."""
    with ops.backend("native"):
        x = states()
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


def each(module: Any, x: Tensor) -> Iterator[Tensor]:
    """Yields what operators that return other memory than they are given make of states."""
    wide = {"dtype": reference.widen(x[:0]).dtype}
    y = torch.linspace(-1, 1, SIZE, **wide)
    y[3] = torch.nan
    std, gamma = torch.tensor(0.3, **wide), torch.tensor(0.2, **wide)
    yield module.predictor(x, x, 0.9, -0.3)
    yield module.multistep(x, [x, x], 0.9, [0.3, 0.2])
    yield module.denoise(x, x, 0.8, 0.6)
    yield module.guide(x, x, x, 0.8, 0.6)
    yield module.residual(y, x, std, gamma, 0.5)
    yield module.block_mean(x, [4])
    yield module.block_mean_adjoint(x[:, : 2**14], [4])


def test_each() -> None:
    with ops.backend("native"):
        x = states()
        expected = [each(reference, x[part].double()) for part in PARTS]
        for result in each(ops, x):
            for part, others in zip(PARTS, expected, strict=True):
                close(result[part], next(others))
            del result  # before the next is made


def test_langevin() -> None:
    with ops.backend("native"):
        x = states()
        result = ops.langevin(x, x, 0.3, 0.5, first_sample=100, **STREAM)
    for part in PARTS:
        first, y = {"first_sample": 100 + part.start}, x[part].double()
        close(result[part], reference.langevin(y, y, 0.3, 0.5, **first, **STREAM))


def test_subsample() -> None:
    """Every other sample, and all of their elements but the first."""
    with ops.backend("native"):
        x = states()
        y = ops.subsample(x, (1, 1), (2, 1), (SAMPLES // 2, SIZE - 1))
        back = ops.subsample_adjoint(y, (1, 1), (2, 1), (SAMPLES, SIZE))
        line = ops.subsample(x.view(1, -1), (2**31 + 5,), (7,), (1000,))
    for part in PARTS:
        first, end, _ = part.indices(SAMPLES)
        assert torch.equal(y[first // 2 : end // 2], x[first:end][first % 2 == 0 :: 2, 1:])
        expected = x[part].clone()
        expected[first % 2 :: 2] = expected[:, :1] = 0
        assert torch.equal(back[part], expected)
    assert torch.equal(line[0], x.view(-1)[2**31 + 5 :: 7][:1000])


def test_sparse_map() -> None:
    """Of many samples, its adjoint too, and of one sample that is itself so large."""
    row, column = torch.tensor([0, 2, 3]), torch.tensor([SIZE - 1, 5, 77])
    with ops.backend("native"):
        x = states()
        y = ops.sparse_map(x, row, column)
        back = ops.sparse_map(y, *ops.transpose(row, column, None, SIZE))
        far = torch.tensor([x.numel() - 1, 2**31 + 1, 0])
        line = ops.sparse_map(x.view(1, -1), row, far)
    for part in PARTS:
        close(y[part], reference.sparse_map(x[part].double(), row, column))
        expected = torch.zeros_like(back[part])
        expected[:, [SIZE - 1, 5, 77]] = y[part][:, [0, 0, 1]]
        assert torch.equal(back[part], expected)
    close(line, reference.sparse_map(x.view(1, -1)[:, far].double(), row, torch.arange(3)))


CHANNELS, GRID = 64, 5794  # a little more than 2^31 elements


def test_fields() -> None:
    """Noise in the first rows and the last, zeros between them."""
    x = torch.zeros(1, GRID, GRID, CHANNELS, dtype=torch.bfloat16)
    padding, none = (1, 1), [0, 1]
    with ops.backend("native"):
        for first in (0, GRID - 3):
            ops.philox_normal_(x[:, first : first + 3], first_sample=first, **STREAM)
        x = x.permute(0, 3, 1, 2)
        assert x.numel() > 2**31
        ends = (slice(0, 3), slice(1, 4)), (slice(GRID - 3, GRID), slice(GRID - 2, GRID + 1))

        def check(result: Tensor, expected: list[Tensor]) -> None:
            for (_, padded), rows in zip(ends, expected, strict=True):
                close(result[:, :, padded], rows)
            close(result[:, :, 0], expected[1][:, :, -1])
            close(result[:, :, -1], expected[0][:, :, 0])

        parts = [x[:, :, rows].double() for rows, _ in ends]
        check(
            ops.activation_pad(x, 3, padding), [reference.activation_pad(p, 3, none) for p in parts]
        )
        check(
            ops.activation_pad_vjp(x, x, 3, padding),
            [reference.activation_pad_vjp(p, p, 3, none) for p in parts],
        )
        normed, scale = ops.norm_pad(x, None, padding)
        both = [reference.norm_pad(p, None, none, [1, 1], 1e-5) for p in parts]
        check(normed, [p[0] for p in both])
        for (rows, _), (_, expected) in zip(ends, both, strict=True):
            torch.testing.assert_close(scale[:, rows].double(), expected, rtol=1e-5, atol=0)
        del normed
        check(
            ops.norm_pad_vjp(x, x, scale, None, padding),
            [
                reference.norm_pad_vjp(p, p, s, None, none, [1, 1])
                for p, (_, s) in zip(parts, both, strict=True)
            ],
        )
