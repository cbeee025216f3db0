"""The operators between convolutions, against the reference in float64, and their gradients."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sda_fast import _native, ops, reference

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 5e-3,
    torch.float16: 6e-4,
}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])

# shape, padding, upsample: odd grids and channels, a pad as wide as the grid, one channel vector
CASES = [
    ((2, 32, 8, 8), (1, 1), (1, 1)),
    ((3, 7, 5, 3), (2, 1), (1, 1)),
    ((1, 19, 1, 4), (1, 4), (1, 1)),
    ((2, 33, 3, 5), (1, 2), (2, 3)),
    ((2, 96, 4, 6), (0, 0), (2, 2)),
    ((1, 2048, 2, 1), (0, 1), (1, 1)),
    ((2, 5, 9, 7), (3, 0), (1, 2)),
]
each_case = pytest.mark.parametrize(("shape", "padding", "upsample"), CASES, ids=str)


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    assert a.shape == b.shape
    assert a.dtype == dtype
    scale = float(b.abs().max())
    torch.testing.assert_close(a.double(), b, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0))


def wide(dtype: torch.dtype) -> torch.dtype:
    return reference.widen(torch.empty(0, dtype=dtype)).dtype


def orders(x: Tensor) -> list[Tensor]:
    """The same numbers in several orders of memory: channels last, first, and with gaps."""
    gaps = torch.empty(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)[..., ::2].copy_(x)
    return [x.contiguous(memory_format=torch.channels_last), x.contiguous(), gaps]


@each_dtype
@each_case
@pytest.mark.parametrize("batches", [None, 1, "B"])
def test_norm_pad(shape, padding, upsample, batches, dtype):
    x = torch.randn(shape, dtype=torch.float64).to(dtype) * 3 + 1
    shift = None
    if batches is not None:
        rows = shape[0] if batches == "B" else 1
        shift = torch.randn(rows, shape[1], dtype=wide(dtype))
    expected, scale = reference.norm_pad(
        x.double(), None if shift is None else shift.double(), padding, upsample, 1e-5
    )

    for y in orders(x):
        out, of = ops.norm_pad(y, shift, padding, upsample, 1e-5)
        close(out, expected, dtype)
        close(of, scale, wide(dtype))
        assert out.is_contiguous(memory_format=torch.channels_last)


@each_dtype
@each_case
@pytest.mark.parametrize("added", [False, True])
def test_norm_pad_vjp(shape, padding, upsample, added, dtype):
    batch, channels, height, width = shape
    if any(p > n for p, n in zip(padding, shape[2:], strict=True)):
        padding = (0, 0)
    up = (batch, channels, upsample[0] * height, upsample[1] * width)
    g, n = (torch.randn(size, dtype=torch.float64).to(dtype) for size in (up, shape))
    residual = torch.randn(shape, dtype=torch.float64).to(dtype) if added else None
    scale = torch.rand(batch, height, width, dtype=wide(dtype)) + 0.5
    expected = reference.norm_pad_vjp(
        g.double(),
        n.double(),
        scale.double(),
        None if residual is None else residual.double(),
        padding,
        upsample,
    )

    for a, b in zip(orders(g), orders(n), strict=True):
        out = ops.norm_pad_vjp(a, b, scale, residual, padding, upsample)
        close(out, expected, dtype)
        assert out.is_contiguous(memory_format=torch.channels_last)


@each_dtype
@each_case
@pytest.mark.parametrize("activation", [None, 0, 1, 2, 3, 4])
def test_activation_pad(shape, padding, upsample, activation, dtype):
    if any(p > n for p, n in zip(padding, shape[2:], strict=True)):
        padding = (0, 0)
    x, g = (torch.randn(shape, dtype=torch.float64).to(dtype) * 3 for _ in range(2))
    for bias in (None, torch.randn(shape[1], dtype=wide(dtype))):
        args = (activation, padding, None if bias is None else bias.double())
        expected = reference.activation_pad(x.double(), *args)
        product = reference.activation_pad_vjp(g.double(), x.double(), *args)

        args = (activation, padding, bias)
        for y, h in zip(orders(x), reversed(orders(g)), strict=True):
            close(ops.activation_pad(y, *args), expected, dtype)
            close(ops.activation_pad_vjp(h, y, *args), product, dtype)


@pytest.mark.parametrize("activation", [None, *range(5)])
def test_nan_stays_nan(activation: int | None):
    """In its place alone, among others of a vector."""
    x = torch.randn(1, 16, 1, 3)
    x[0, 5, 0, 1] = torch.nan
    with ops.backend("native"):
        result = ops.activation_pad(x, activation)
    assert torch.equal(result.isnan(), x.isnan())


def test_reference_is_the_product_of_autograd():
    """The formulas of the reference's vector-Jacobian products against autograd."""
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(2, 5, dtype=torch.float64)
    (normed, scale), plain = reference.norm_pad(x, shift, [0, 0], [2, 3], 1e-5), [0, 0]
    g = torch.randn_like(normed)
    (expected,) = torch.autograd.grad(normed, x, g)
    low = normed[:, :, ::2, ::3].detach()
    product = reference.norm_pad_vjp(g, low, scale, None, plain, [2, 3])
    torch.testing.assert_close(product, expected)

    for activation in (None, *range(5)):
        y = reference.activation_pad(x, activation, plain, shift[0])
        (expected,) = torch.autograd.grad(y, x, y.detach())
        product = reference.activation_pad_vjp(y.detach(), x.detach(), activation, plain, shift[0])
        torch.testing.assert_close(product, expected)


def test_fold_is_the_adjoint_of_padding():
    for padding in ((0, 0), (1, 0), (2, 3), (4, 3)):
        x = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
        y = reference.activation_pad(x, None, padding)
        g = torch.randn_like(y)
        (expected,) = torch.autograd.grad(y, x, g)
        torch.testing.assert_close(ops.fold(g, padding), expected)


@pytest.mark.parametrize("rows", [None, 1, 2])
def test_norm_pad_gradient(rows: int | None):
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    shift = None
    if rows is not None:
        shift = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    with ops.backend("native"):
        for padding, upsample in (((1, 2), (1, 1)), ((0, 1), (2, 1)), ((3, 0), (1, 3))):
            assert torch.autograd.gradcheck(
                lambda x, s, p=padding, u=upsample: ops.norm_pad(x, s, p, u)[0], (x, shift)
            )


@pytest.mark.parametrize("activation", [None, 1, 2, 3, 4])
def test_activation_pad_gradient(activation: int | None):
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    with ops.backend("native"):
        for b in (None, bias):
            assert torch.autograd.gradcheck(
                lambda x, b: ops.activation_pad(x, activation, (1, 2), b), (x, b)
            )


def arguments(name: str) -> tuple[object, ...]:
    x, g = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 6, 4)
    return {
        "norm_pad": (x, torch.randn(1, 5), [1, 2], [2, 1], 1e-5),
        "norm_pad_vjp": (g, x, torch.rand(2, 3, 4), torch.randn_like(x), [1, 2], [2, 1]),
        "activation_pad": (x, 3, [1, 2], torch.randn(5)),
        "activation_pad_vjp": (torch.randn_like(x), x, None, [1, 2]),
    }[name]


@pytest.mark.parametrize(
    "name", ["norm_pad", "norm_pad_vjp", "activation_pad", "activation_pad_vjp"]
)
def test_opcheck(name: str):
    args = arguments(name)
    if not name.endswith("vjp"):
        args[0].requires_grad_()
    torch.library.opcheck(getattr(torch.ops.sda_fast, name).default, args)


def test_second_derivatives_are_refused():
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    for y in (ops.norm_pad(x, None, (1, 1))[0], ops.activation_pad(x, 3, (1, 1))):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            torch.autograd.grad(gradient.sum(), x)


def test_threads_do_not_matter():
    x, threads = torch.randn(3, 48, 33, 31), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((ops.norm_pad(x, None, (1, 1))[0], ops.activation_pad(x, 3, (1, 1))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_empty():
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        x = torch.empty(shape)
        padding = (0, 1)
        assert ops.norm_pad(x, None, padding)[0].shape == (*shape[:3], 6)
        assert ops.activation_pad(x, 3, padding).shape == (*shape[:3], 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.norm_pad(x[0]), r"x must have at least 4"),
        (lambda x: ops.norm_pad(x, torch.zeros(3, 5)), r"shift must be float32 of shape \(1 or 2"),
        (lambda x: ops.norm_pad(x, torch.zeros(1, 5).double()), "shift must be float32"),
        (lambda x: ops.norm_pad(x, None, (4, 0)), r"padding must be .* at most the size"),
        (lambda x: ops.norm_pad(x, None, (1,)), r"padding must have 2 number"),
        (lambda x: ops.norm_pad(x, None, (1, 1), (0, 1)), "upsample must be at least 1"),
        (lambda x: ops.norm_pad(x, None, (0, 0), (2**62 + 1, 1)), "upsample .* fewer than 2.31"),
        (
            lambda x: ops.norm_pad_vjp(x, x, torch.zeros(2, 3, 4), None, (0, 0), (1, 2**62 + 1)),
            "upsample .* fewer than 2.31",
        ),
        (lambda x: ops.norm_pad(torch.zeros(0, 1, 2**40, 1)), "fewer than 2.31 points"),
        (lambda x: ops.norm_pad(torch.zeros(1, 2049, 1, 1)), "1 to 2048 channels"),
        (lambda x: ops.norm_pad_vjp(x, x, torch.zeros(2, 3)), "scale must be float32 of shape"),
        (
            lambda x: ops.norm_pad_vjp(x, x, torch.zeros(2, 3, 4), None, (0, 0), (2, 1)),
            r"cotangent must have shape \[2, 5, 6, 4\]",
        ),
        (
            lambda x: ops.norm_pad_vjp(x, x, torch.zeros(2, 3, 4), x.double()),
            "residual must be float32",
        ),
        (lambda x: ops.activation_pad(x, 5), "activation must be from 0 to 4, but is 5"),
        (lambda x: ops.activation_pad(x, 3, (0, 0), x[0, 0, 0]), r"bias must be .* shape \(5\)"),
        (lambda x: ops.activation_pad_vjp(x[:1], x), r"cotangent must have shape \[2, 5, 3, 4\]"),
    ],
)
def test_errors(call, message: str):
    with ops.backend("native"), pytest.raises(RuntimeError, match=message):
        call(torch.randn(2, 5, 3, 4))


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(isa: str):
    chosen = "(norm_pad or activation_pad) and (float32 or bfloat16)"
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
