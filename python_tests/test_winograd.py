"""Convolutions by minimal filtering, against direct ones in float64."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sda_fast import _native, ops, reference

needs_native = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

# batch, inputs, outputs, height, width, padding, height of the kernels: tiles in part, an odd
# number of 16 outputs, a single tile, more tiles than an item takes, inputs of which an item takes
# more
CASES = [
    (2, 16, 16, 10, 10, (0, 0), 3),
    (1, 32, 48, 9, 13, (1, 1), 3),
    (3, 48, 80, 6, 4, (0, 0), 3),
    (1, 16, 16, 3, 3, (0, 0), 3),
    (1, 16, 32, 1, 5, (1, 1), 3),
    (1, 32, 16, 1, 1, (2, 1), 3),
    (5, 64, 32, 34, 30, (2, 0), 3),
    (2, 96, 96, 18, 18, (0, 0), 3),
    (3, 272, 32, 18, 16, (1, 1), 3),
    (1, 16, 288, 6, 6, (0, 0), 3),
    (1, 64, 64, 1, 67, (0, 0), 1),
    (16, 16, 48, 1, 65, (0, 1), 1),
    (3, 32, 16, 1, 1, (0, 1), 1),
    (1, 16, 16, 1, 3, (0, 0), 1),
    (2, 272, 80, 5, 30, (0, 2), 1),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)

Case = tuple[int, int, int, int, int, tuple[int, int], int]


def make(case: Case) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    batch, inputs, outputs, height, width, padding, rows = case
    torch.manual_seed(0)
    x = F.silu(torch.randn(batch, inputs, height, width))
    return x, torch.randn(outputs, inputs, rows, 3), torch.randn(outputs), padding


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    bias = None if bias is None else bias.double()
    return F.conv2d(x.double(), weight.double(), bias, padding=padding)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@each_case
def test_reference(case: Case):
    x, weight, bias, padding = make(case)
    kernel = reference.winograd_kernel(weight.double())
    places = {1: 6, 3: 36}[weight.shape[2]]
    assert kernel.shape == (places, len(weight) // 16, x.shape[1], 16)
    for b in (None, bias.double()):
        result = reference.winograd(x.double(), kernel, b, list(padding))
        torch.testing.assert_close(result, exact(x, weight, b, padding), rtol=1e-12, atol=1e-12)


def orders(x: Tensor) -> list[Tensor]:
    """The same numbers in several orders of memory: channels last, first, with gaps, and not at
    the boundaries of vectors."""
    gaps = torch.empty(*x.shape[:3], 2 * x.shape[3])[..., ::2].copy_(x)
    y = x.permute(0, 2, 3, 1)
    shifted = torch.empty(y.numel() + 1)[1:].view(y.shape).copy_(y).permute(0, 3, 1, 2)
    wide = torch.empty(*y.shape[:3], x.shape[1] + 3)[..., 2:-1].copy_(y).permute(0, 3, 1, 2)
    first, last = torch.contiguous_format, torch.channels_last
    return [x.clone(memory_format=last), x.clone(memory_format=first), gaps, shifted, wide]


@needs_native
@each_case
def test_native(case: Case):
    x, weight, bias, padding = make(case)
    kernel = ops.winograd_kernel(weight)
    with ops.backend("native"):
        for b in (None, bias):
            expected = exact(x, weight, b, padding)
            results = [ops.winograd(y, kernel, b, padding) for y in orders(x)]
            assert relative(results[0], expected) < 2e-6
            assert results[0].is_contiguous(memory_format=torch.channels_last)
            assert all(torch.equal(results[0], other) for other in results[1:])

            onto = torch.randn(expected.shape)
            sums = onto + results[0]
            for y in orders(onto):
                assert ops.winograd_(y, x, kernel, b, padding) is None
                torch.testing.assert_close(y, sums, rtol=0, atol=2e-6 * float(sums.abs().max()))


@needs_native
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("channels", [32, 96, 384])
def test_errors_are_about_those_of_a_direct_sum(channels: int, rows: int):
    """Of one that adds up the products in order of their channels."""
    x, weight, _, padding = make((2, channels, channels, 15 + rows, 18, (0, 0), rows))
    weight = (torch.rand_like(weight) * 2 - 1) / (3 * rows * channels) ** 0.5
    expected = exact(x, weight, None, padding)
    with ops.backend("native"):
        error = relative(ops.winograd(x, ops.winograd_kernel(weight)), expected)
    direct = torch.zeros(expected.shape)
    for c in range(channels):
        for i in range(rows):
            for j in range(3):
                direct += x[:, c, None, i : i + 16, j : j + 16] * weight[:, c, i, j, None, None]
    assert error < 2 * relative(direct, expected)


@needs_native
def test_threads_and_batches_do_not_matter():
    threads = torch.get_num_threads()
    for case in CASES:
        x, weight, bias, padding = make(case)
        kernel, results = ops.winograd_kernel(weight), []
        try:
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(ops.winograd(x, kernel, bias, padding))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(results[0], other) for other in results[1:])
        assert torch.equal(ops.winograd(x[-1:], kernel, bias, padding), results[0][-1:])


@needs_native
def test_what_is_added_to_may_be_the_source():
    x, weight, bias, _ = make((1, 32, 32, 9, 6, (1, 1), 3))
    kernel = ops.winograd_kernel(weight)
    expected = x + ops.winograd(x, kernel, bias, (1, 1))
    for y in orders(x):
        ops.winograd_(y, y, kernel, bias, (1, 1))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@needs_native
def test_fields_far_apart():
    """More than 2^31 numbers lie between them, of which no page is ever touched."""
    apart = 2**31 + 2**20
    x = torch.empty(apart + 36 * 16).as_strided((2, 16, 6, 6), (apart, 1, 96, 16))
    x.copy_(torch.randn(x.shape))
    weight = torch.randn(32, 16, 3, 3)
    with ops.backend("native"):
        result = ops.winograd(x, ops.winograd_kernel(weight))
    assert relative(result, exact(x, weight, None, (0, 0))) < 2e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lost(bad: float):
    """Nothing that depends on it is finite, and tiles that do not are as before."""
    x, weight, _, _ = make((1, 16, 16, 18, 18, (0, 0), 3))
    kernel = ops.winograd_kernel(weight)
    plain = ops.winograd(x, kernel)
    x[0, 3, 9, 9] = bad
    result = ops.winograd(x, kernel)
    depends = torch.zeros(16, 16, dtype=torch.bool)
    depends[7:10, 7:10] = True
    assert not result[0][:, depends].isfinite().any()
    tiles = F.max_pool2d(depends[None].float(), 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    apart = tiles[0] == 0
    assert apart.any()
    assert torch.equal(result[0][:, apart], plain[0][:, apart])


def test_gradients_and_other_types_are_the_reference_s():
    x, weight, bias, padding = make((2, 16, 32, 6, 7, (1, 1), 3))
    kernel = ops.winograd_kernel(weight)
    leaf = x.clone().requires_grad_()
    result = ops.winograd(leaf, kernel, bias, padding)
    cotangent = torch.randn(result.shape)
    (gradient,) = torch.autograd.grad(result, leaf, cotangent)
    (expected,) = torch.autograd.grad(F.conv2d(leaf, weight, bias, padding=1), leaf, cotangent)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)

    double = ops.winograd(x.double(), ops.winograd_kernel(weight.double()), None, padding)
    torch.testing.assert_close(double, exact(x, weight, None, padding))
    onto = torch.zeros_like(double)
    ops.winograd_(onto, x.double(), ops.winograd_kernel(weight.double()), None, padding)
    assert torch.equal(onto, double)
    assert ops.winograd_kernel(weight.double()).dtype == torch.float64


@needs_native
def test_empty():
    kernel = ops.winograd_kernel(torch.randn(32, 16, 3, 3))
    with ops.backend("native"):
        assert ops.winograd(torch.empty(0, 16, 5, 6), kernel).shape == (0, 32, 3, 4)


@needs_native
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["winograd", "winograd_"])
def test_opcheck(name: str, rows: int):
    x, weight, bias, _ = make((2, 16, 32, 6, 7, (0, 1), rows))
    args: tuple[Any, ...] = (x, ops.winograd_kernel(weight), bias, [rows // 2, 1])
    if name == "winograd_":
        args = (torch.randn(2, 32, 6, 7), *args)
    torch.library.opcheck(getattr(torch.ops.sda_fast, name).default, args)


@needs_native
def test_the_operator_itself_has_no_gradient():
    x, weight, _, _ = make((1, 16, 16, 6, 6, (0, 0), 3))
    y = torch.ops.sda_fast.winograd(x.requires_grad_(), ops.winograd_kernel(weight), None, [0, 0])
    with pytest.raises(NotImplementedError, match="no gradient"):
        y.sum().backward()


@needs_native
def test_compiles():
    x, weight, bias, padding = make((2, 16, 32, 6, 7, (1, 1), 3))
    kernel = ops.winograd_kernel(weight)

    def f(x: Tensor) -> Tensor:
        return 2 * ops.winograd(x, kernel, bias, padding)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), f(x))


K = torch.zeros(36, 2, 16, 16)


@needs_native
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.winograd(x[0], K), "x must have at least 4"),
        (lambda x: ops.winograd(x[:, :8], K), r"kernel must be float32 .* 8 channels of x"),
        (lambda x: ops.winograd(x, K[:35]), r"kernel must be .* shape \(35, 2, 16, 16\)"),
        (lambda x: ops.winograd(x, K[:6], None, (1, 0)), "less than the 1 x 3 points"),
        (lambda x: ops.winograd(x, K.double()), "kernel must be .* but is float64"),
        (lambda x: ops.winograd(x, K[:, :0]), "kernel must have 16 to 2048 outputs"),
        (lambda x: ops.winograd(x, K, x[0, 0, 0]), r"bias must be float32 of shape \(32\)"),
        (lambda x: ops.winograd(x, K, None, (1,)), "padding must have 2 number"),
        (lambda x: ops.winograd(x, K, None, (3, 0)), "padding must be less than the 3 x 3 points"),
        (lambda x: ops.winograd(x[:, :, :2], K), "leave x as wide as it"),
        (lambda x: ops.winograd_(x, x, K), r"onto must be float32 of shape \(2, 32, 3, 4\)"),
        (lambda x: ops.winograd_(x[:1, :1, :1, :1].expand(2, 32, 3, 4), x, K), "memory of its own"),
    ],
)
def test_errors(call: Callable[[Tensor], Any], message: str):
    with ops.backend("native"), pytest.raises(RuntimeError, match=message):
        call(torch.randn(2, 16, 5, 6))


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(isa: str):
    chosen = "native or direct_sum or threads or finite"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env={**os.environ, "SDA_FAST_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "which this CPU does not have" in done.stdout:
        pytest.skip(f"this CPU has no {isa}")
    assert done.returncode == 0, done.stdout
