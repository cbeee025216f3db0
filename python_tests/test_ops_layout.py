"""The operators on any strides and any batch: the numbers of contiguous tensors, without copies."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sda_fast import _native, ops

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

STREAM = {"seed": 5, "step": 7, "correction": 3, "first_sample": 11}
START = torch.tensor([0, 2, 2, 6])
WEIGHT = torch.tensor([[1, 1, 1], [1, 1, -1], [0, -1, 1], [1, 0, 1]], dtype=torch.int8)
DTYPES = [torch.float32, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
each_backend = pytest.mark.parametrize("backend", ["native", "reference"])


def copies(call: Callable[[], object]) -> int:
    """Counts the copies of tensors that a call makes."""
    with torch.no_grad(), ops.backend("native"):
        call()
        with profile(activities=[ProfilerActivity.CPU]) as events:
            call()
    assert any(e.name.startswith("sda_fast::") for e in events.events())
    return sum(e.name in ("aten::copy_", "aten::clone") for e in events.events())


def moved(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns a tensor of the same numbers whose dimensions lie in memory in another order."""
    back = tuple(axes.index(d) for d in range(x.ndim))
    return x.permute(axes).clone(memory_format=torch.contiguous_format).permute(back)


# The predictor: any order of the dimensions, as long as there are no gaps


@each_dtype
@pytest.mark.parametrize(
    "axes", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3), (2, 0, 3, 1)], ids=str
)
def test_predictor_walks_memory_in_order(axes: tuple[int, ...], dtype: torch.dtype) -> None:
    plain, other = torch.randn(2, 3, 4, 5, 6, dtype=dtype)
    expected = ops.predictor(plain, other, 0.9, -0.3)
    x, eps = moved(plain, axes), moved(other, axes)

    result = ops.predictor(x, eps, 0.9, -0.3)
    assert torch.equal(result, expected)
    assert result.stride() == x.stride()
    assert copies(lambda: ops.predictor(x, eps, 0.9, -0.3)) == 0
    work = moved(plain, axes)
    assert copies(lambda: ops.predictor_(work, eps, 0.9, -0.3)) == 0

    work = moved(plain, axes)
    ops.predictor_(work, eps, 0.9, -0.3)
    assert torch.equal(work, expected)
    work = moved(plain, axes)
    ops.predictor_(work, other, 0.9, -0.3)  # eps in another order
    assert torch.equal(work, expected)
    assert torch.equal(ops.predictor(x, other, 0.9, -0.3), expected)


def test_predictor_with_gaps_and_overlaps() -> None:
    """Slices, expanded and overlapping tensors are copied, and the numbers are right."""
    buffer = torch.randn(4, 10, 6)
    eps = torch.randn(4, 5, 3)
    cases = {
        "slice": buffer[:, ::2, ::2],
        "transposed slice": torch.randn(4, 6, 10)[:, ::2, ::2].mT,
        "expanded": buffer[:1, :5, :3].expand(4, 5, 3),
        "overlapping": torch.randn(40).as_strided((4, 5, 3), (5, 2, 1)),
    }
    for name, x in cases.items():
        expected = ops.predictor(x.contiguous(), eps, 0.9, -0.3)
        assert torch.equal(ops.predictor(x, eps, 0.9, -0.3), expected), name
        expected = ops.predictor(eps, x.contiguous(), 0.9, -0.3)
        assert torch.equal(ops.predictor(eps, x, 0.9, -0.3), expected), name
    for name in ("slice", "transposed slice"):
        expected = ops.predictor(cases[name].contiguous(), eps, 0.9, -0.3)
        ops.predictor_(cases[name], eps, 0.9, -0.3)
        assert torch.equal(cases[name], expected)


def test_predictor_in_place_reads_before_it_writes() -> None:
    """eps may be x in another order, or lie across it."""
    x = torch.randn(5, 5)
    expected = ops.predictor(x, x.T.clone(), 0.9, 0.2)
    ops.predictor_(x, x.T, 0.9, 0.2)
    assert torch.equal(x, expected)


# Windows: any strides of what is not a row


@each_dtype
@pytest.mark.parametrize("event", [(3,), (4, 8), (2, 3, 600)], ids=str)
def test_windows_at_any_strides(event: tuple[int, ...], dtype: torch.dtype) -> None:
    plain = torch.randn(2, 9, *event, dtype=dtype)
    expected = ops.gather(plain, START, WEIGHT)
    gaps = torch.full((4, 18, *event), torch.nan, dtype=dtype)
    gaps[1::2, ::2] = plain
    time_first = moved(plain, (1, 0, *range(2, plain.ndim)))
    turned = moved(plain, tuple(reversed(range(plain.ndim))))
    for x, free in ((gaps[1::2, ::2], True), (time_first, True), (turned, len(event) == 1)):
        assert torch.equal(ops.gather(x, START, WEIGHT), expected)
        if free:
            rows = x if x[0, 0].is_contiguous() else plain
            assert copies(lambda rows=rows: ops.gather(rows, START, WEIGHT)) == 0
    same = plain[:1, :1].expand(2, 9, *event)
    assert torch.equal(ops.gather(same, START, WEIGHT), ops.gather(same.clone(), START, WEIGHT))

    windows = torch.randn(expected.shape, dtype=dtype)
    composed = ops.compose(windows, START, WEIGHT, 9)
    order = (1, 0, *range(2, windows.ndim))
    gaps = torch.full((4, 8, *windows.shape[2:]), torch.nan, dtype=dtype)
    gaps[::2, 1::2] = windows
    for x in (moved(windows, order), gaps[::2, 1::2]):
        assert torch.equal(ops.compose(x, START, WEIGHT, 9), composed)
        assert copies(lambda x=x: ops.compose(x, START, WEIGHT, 9)) == 0
    turned = moved(windows, tuple(reversed(range(windows.ndim))))
    assert torch.equal(ops.compose(turned, START, WEIGHT, 9), composed)


def test_a_trajectory_too_long_to_copy() -> None:
    """One state, seen 2^40 times: there is no memory for a copy."""
    x = torch.randn(1, 1, 8).expand(2, 2**40, 8)
    start = torch.tensor([0, 2**40 - 3])
    windows = ops.gather(x, start, WEIGHT[:2])
    assert torch.equal(windows, ops.gather(x[:, :5].clone(), torch.tensor([0, 2]), WEIGHT[:2]))


# Any batch


@each_backend
@each_dtype
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 1, 3), (0, 2), (2, 0, 3)], ids=str)
def test_any_batch(batch: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    """Samples are numbered in row-major order, whatever the batch's shape."""
    n = len(batch)
    x, eps = torch.randn(2, *batch, 9, 4, dtype=dtype)
    flat, flat_eps = (t.reshape(-1 if t.numel() else 0, 9, 4) for t in (x, eps))
    with ops.backend(backend):
        windows = ops.gather(x, START, WEIGHT, batch_dims=n)
        assert windows.shape == (*batch, 4, 12)
        expected = ops.gather(flat, START, WEIGHT)
        assert torch.equal(windows.reshape(expected.shape), expected)

        composed = ops.compose(windows, START, WEIGHT, 9, batch_dims=n)
        assert composed.shape == x.shape
        assert torch.equal(composed.reshape(flat.shape), ops.compose(expected, START, WEIGHT, 9))

        if x.numel() == 0 and backend == "reference":
            return  # it has no mean of nothing
        expected = ops.langevin(flat, flat_eps, 0.3, 0.5, **STREAM).reshape(x.shape)
        assert torch.equal(ops.langevin(x, eps, 0.3, 0.5, batch_dims=n, **STREAM), expected)
        noise = torch.zeros_like(flat)
        ops.philox_normal_(noise, **STREAM)

        layouts = [x.clone(), moved(x, tuple(reversed(range(x.ndim)))).clone()]
        layouts.append(x.new_zeros(*x.shape, 2)[..., 1].copy_(x))
        for work in layouts:
            ops.langevin_(work, eps, 0.3, 0.5, batch_dims=n, **STREAM)
            assert torch.equal(work, expected)
            ops.philox_normal_(work, batch_dims=n, **STREAM)
            assert torch.equal(work, noise.reshape(x.shape))


def test_batches_that_join_are_not_copied() -> None:
    x = torch.randn(2, 3, 9, 4)
    wide = torch.randn(2, 3, 10, 4)[:, :, :9]
    assert copies(lambda: ops.gather(x, START, WEIGHT, batch_dims=2)) == 0
    assert copies(lambda: ops.gather(wide, START, WEIGHT, batch_dims=2)) == 0
    windows = torch.randn(2, 3, 4, 12)
    assert copies(lambda: ops.compose(windows, START, WEIGHT, 9, batch_dims=2)) == 0
    assert copies(lambda: ops.langevin_(x, x, 0.3, 0.5, batch_dims=2, **STREAM)) == 0
    assert copies(lambda: ops.philox_normal_(x[0], batch_dims=0, **STREAM)) == 0


def test_gradients_and_compilation_of_any_batch() -> None:
    x, eps = (t.requires_grad_() for t in torch.randn(2, 2, 1, 9, 1, dtype=torch.float64))

    def f(x: Tensor, eps: Tensor) -> Tensor:
        y = ops.compose(ops.gather(x, START, WEIGHT, batch_dims=2), START, WEIGHT, 9, batch_dims=2)
        return ops.langevin(y, eps, 0.3, 0.5, batch_dims=2, **STREAM)

    assert torch.autograd.gradcheck(f, (x, eps))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, eps), f(x, eps))

    def fill(x: Tensor) -> None:
        ops.philox_normal_(x, batch_dims=2, **STREAM)

    for z in (torch.zeros(2, 3, 5), torch.zeros(3, 2, 5).transpose(0, 1)):
        expected = z.clone()
        fill(expected)
        torch.compile(fill, fullgraph=True, backend="aot_eager")(z)
        assert torch.equal(z, expected)


def test_errors_of_batches() -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"at most the 3 dimension\(s\) of x, but is 4"):
        ops.gather(x, START, WEIGHT, batch_dims=4)
    with pytest.raises(ValueError, match=r"batch_dims must be at least 0 .* but is -1"):
        ops.philox_normal_(x, batch_dims=-1, **STREAM)
    for langevin in (ops.langevin, ops.langevin_):
        with pytest.raises(RuntimeError, match=r"shape of x, \(2, 3, 4\), but has \(3, 2, 4\)"):
            langevin(x, torch.zeros(3, 2, 4), 0.3, 0.5, batch_dims=2, **STREAM)


# Nothing at all


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_nothing(dtype: torch.dtype) -> None:
    """Of tensors without elements, shapes and types are right."""
    none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int8)
    with ops.backend("native"):
        for shape in ((0, 9, 4), (2, 9, 0), (2, 9, 4, 0)):
            x = torch.zeros(shape, dtype=dtype)
            windows = ops.gather(x, START, WEIGHT)
            assert windows.shape == (shape[0], 4, 3 * shape[2], *shape[3:])
            assert windows.dtype == dtype
            assert ops.compose(windows, START, WEIGHT, 9).shape == shape
            assert ops.predictor(x, x, 1.0, 1.0).shape == shape
            assert ops.langevin(x, x, 1.0, 1.0, **STREAM).dtype == dtype
            for run in (ops.predictor_, ops.langevin_):
                run(x, x, 1.0, 1.0, **(STREAM if run is ops.langevin_ else {}))
            ops.philox_normal_(x, **STREAM)
        empty = torch.zeros(2, 0, 4, dtype=dtype)
        assert ops.gather(empty, *none).shape == (2, 0, 12)
        assert ops.compose(torch.zeros(2, 0, 12, dtype=dtype), *none, 0).shape == (2, 0, 4)
        zeros = ops.compose(torch.zeros(2, 0, 12, dtype=dtype), *none, 5)
        assert torch.equal(zeros, torch.zeros(2, 5, 4, dtype=dtype))
