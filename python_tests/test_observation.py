"""Observation operators against dense matrices in float64, and as what guidance calls."""

import copy
import math
import re
import warnings
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sda_fast import VPSDE, GaussianScore, MMPSGaussianScore, ops
from sda_fast.observation import (
    BlockMean,
    Composition,
    Function,
    Interpolate,
    Linear,
    ObservationOperator,
    Pointwise,
    Select,
    SparseMap,
    Stack,
    Subsample,
    Vorticity,
)
from sda_fast.systems.flow import vorticity

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FLOW = (3, 2, 4, 8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def points(n: int, *sizes: int) -> Tensor:
    return torch.rand(n, len(sizes), dtype=torch.float64) * (torch.tensor(sizes) - 1)


def soft(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def linear() -> dict[str, ObservationOperator]:
    torch.manual_seed(1)
    times = 2 * torch.rand(5, dtype=torch.float64)
    times[0] = 2
    matrix = torch.randn(3, 9, dtype=torch.float64)
    matrix[matrix.abs() < 0.7] = 0
    with warnings.catch_warnings():  # of torch, that compressed rows are new
        warnings.simplefilter("ignore")
        rows = matrix.to_sparse_csr()
    low = Subsample(FLOW, slice(None, None, 2), slice(None), slice(1, None, 2))
    return {
        "subsample": Subsample((9, 3), slice(None, None, 4), slice(0, 1)),
        "subsample of a grid": Subsample(FLOW, slice(1, 3), slice(1, 2), slice(0, 4, 3), slice(1)),
        "select by mask": Select(FLOW, torch.rand(FLOW) < 0.1),
        "select by place": Select((4, 3), torch.tensor([11, 0, 5, 5])),
        "select by coordinates": Select((4, 3), torch.tensor([[3, 2], [0, 0], [1, 2]])),
        "interpolate": Interpolate(FLOW, points(6, 4, 8)),
        "interpolate periodic": Interpolate(FLOW, 20 * points(6, 4, 8) - 9, periodic=True),
        "interpolate times": Interpolate(FLOW, points(5, 4, 8), times),
        "block mean": BlockMean(FLOW, (2, 4)),
        "block mean of time": BlockMean(FLOW, (3, 1, 2, 1)),
        "dense": Linear((3, 3), torch.randn(4, 9, dtype=torch.float64)),
        "dense of each state": Linear((5, 3), torch.randn(2, 3, dtype=torch.float64)),
        "sparse": Linear((5, 3, 3), matrix.to_sparse(), (15,)),
        "sparse of rows": Linear((3, 3), rows),
        "vorticity": Vorticity(FLOW),
        "composition": BlockMean(low.shape, (2, 2)) @ low,
        "stack": Stack(BlockMean(FLOW, (4, 4)), low, Vorticity(FLOW)),
        "function": Function(lambda x: x.cumsum(1)[:, 1:], (4, 3), (3, 3), linear=True),
    }


def nonlinear() -> dict[str, ObservationOperator]:
    low = Subsample(FLOW, slice(None, None, 2))
    slope = Pointwise(soft, low.shape, lambda x: (1 + x.abs()) ** -2)
    return {
        "pointwise": Pointwise(soft, FLOW),
        "pointwise of a subsample": slope @ low,
        "subsample of a pointwise": low @ Pointwise(torch.sin, FLOW),
        "twice": slope @ low @ Pointwise(torch.sin, FLOW),
        "speed": Function(lambda x: x.square().sum(dim=2).sqrt(), FLOW, (3, 4, 8)),
        "stack": Stack(low, slope @ low),
    }


LINEAR, NONLINEAR = linear(), nonlinear()
each_linear = pytest.mark.parametrize("A", LINEAR.values(), ids=LINEAR.keys())
each_nonlinear = pytest.mark.parametrize("A", NONLINEAR.values(), ids=NONLINEAR.keys())


# What all of them do


@each_linear
def test_a_linear_operator_is_its_matrix(A: ObservationOperator) -> None:
    H = A.matrix()
    assert A.linear
    assert H.shape == (A.shape.numel(), A.event.numel())

    x = torch.randn(4, *A.event, dtype=torch.float64, requires_grad=True)
    y, c = A(x), torch.randn(4, *A.shape, dtype=torch.float64)
    assert y.shape == c.shape
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ H.mT)

    back = A.vjp(x, c)
    torch.testing.assert_close(back.flatten(1), c.flatten(1) @ H)
    torch.testing.assert_close((y * c).sum(), (x * back).sum())  # <A x, c> = <x, A^T c>
    torch.testing.assert_close(torch.autograd.grad(y, x, c)[0], back)
    with ops.backend("reference"):
        torch.testing.assert_close(A(x), y)
        torch.testing.assert_close(A.vjp(x, c), back)


@each_nonlinear
def test_the_gradient_of_a_nonlinear_operator(A: ObservationOperator) -> None:
    x = torch.randn(2, *A.event, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, *A.shape, dtype=torch.float64, requires_grad=True)
    assert not A.linear
    expected = torch.autograd.grad(A(x), x, c)[0]
    torch.testing.assert_close(A.vjp(x, c), expected)
    assert not A.vjp(x.detach(), c.detach()).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(A.vjp(x, c), expected)
    with pytest.raises(ValueError, match="must be linear to have a matrix"):
        A.matrix()


@pytest.mark.parametrize(
    "A",
    [LINEAR["interpolate times"], LINEAR["stack"], NONLINEAR["twice"]],
    ids=["interpolate", "stack", "twice"],
)
def test_gradients(A: ObservationOperator) -> None:
    x = torch.randn(1, *A.event, dtype=torch.float64, requires_grad=True)
    c = torch.randn(1, *A.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(A, x, fast_mode=True)
    assert torch.autograd.gradcheck(A.vjp, (x, c), fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@each_linear
def test_types(A: ObservationOperator, dtype: torch.dtype) -> None:
    x, c = torch.randn(2, *A.event).to(dtype), torch.randn(2, *A.shape).to(dtype)
    y, back = A(x), A.vjp(x, c)
    assert y.dtype == back.dtype == dtype
    # entries are rounded to a half type where the matrix product is torch's
    tolerance = 1e-2 if dtype.itemsize == 2 else 1e-5
    tolerance *= 10 if dtype == torch.bfloat16 else 1
    torch.testing.assert_close(y.double(), A(x.double()), rtol=tolerance, atol=tolerance)
    expected = A.vjp(x.double(), c.double())
    torch.testing.assert_close(back.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "A", [*LINEAR.values(), *NONLINEAR.values()], ids=[*LINEAR.keys(), *NONLINEAR.keys()]
)
def test_state_dict(A: ObservationOperator) -> None:
    x = torch.randn(2, *A.event, dtype=torch.float64)
    other = copy.deepcopy(A)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(A.state_dict(), strict=True)
    assert torch.equal(other(x), A(x))
    if A.linear and list(A.buffers()):
        on_meta = copy.deepcopy(A).to("meta")
        assert on_meta(x.to("meta")).shape == A(x).shape


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@each_linear
def test_on_a_gpu(A: ObservationOperator) -> None:
    x, c = (torch.randn(2, *s, dtype=torch.float64) for s in (A.event, A.shape))
    there = copy.deepcopy(A).to("cuda")
    torch.testing.assert_close(there(x.cuda()).cpu(), A(x))
    torch.testing.assert_close(there.vjp(x.cuda(), c.cuda()).cpu(), A.vjp(x, c))


# What each of them sees


def test_subsample_is_a_slice() -> None:
    x = torch.randn(4, 65, 3)
    A = Subsample((65, 3), slice(None, None, 8), slice(0, 1))
    assert A.shape == (9, 1)
    assert torch.equal(A(x), x[:, ::8, :1])
    x = torch.randn(2, *FLOW)
    cut = (slice(-2, None), slice(None), slice(None, -1), slice(1, 100, 3))
    assert torch.equal(Subsample(FLOW, *cut)(x), x[(slice(None), *cut)])


def test_select() -> None:
    x = torch.randn(2, *FLOW)
    mask = torch.rand(FLOW) < 0.2
    assert torch.equal(Select(FLOW, mask)(x), x[:, mask])
    assert torch.equal(Select(FLOW, mask.nonzero())(x), x[:, mask])
    assert torch.equal(Select(FLOW, torch.tensor([7, 3, 7]))(x), x.flatten(1)[:, [7, 3, 7]])
    x[:, ~mask] = torch.nan  # not read
    assert Select(FLOW, mask)(x).isfinite().all()


@pytest.mark.parametrize("periodic", [False, True])
def test_interpolation_is_scipy_s(periodic: bool) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    where = points(40, 4, 8)
    where = torch.cat([where, torch.tensor([[0, 0], [3, 7], [3, 0], [1, 2]])])
    if periodic:
        where = torch.cat([where, where * 5 - 11])
    x = torch.randn(1, *FLOW, dtype=torch.float64)
    y = Interpolate(FLOW, where, periodic=periodic)(x)
    mode = "grid-wrap" if periodic else "nearest"
    expected = [
        [
            ndimage.map_coordinates(field.numpy(), where.numpy().T, order=1, mode=mode)
            for field in state
        ]
        for state in x[0]
    ]
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=1e-12)


def test_interpolation_in_time() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    where, times = points(40, 4, 8), 2 * torch.rand(40, dtype=torch.float64)
    times[:3] = torch.tensor([0.0, 1.0, 2.0])
    x = torch.randn(1, *FLOW, dtype=torch.float64)
    y = Interpolate(FLOW, where, times)(x)
    place = torch.cat([times[:, None], where], dim=1).numpy().T
    expected = [ndimage.map_coordinates(x[0, :, c].numpy(), place, order=1) for c in range(2)]
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=1e-12)


def test_points_of_the_grid_are_read_alone() -> None:
    x = torch.full((1, 4, 8), torch.nan)
    x[0, 3, 7] = 5
    assert Interpolate((4, 8), torch.tensor([[3, 7]]))(x).item() == 5


def test_block_mean() -> None:
    x = torch.randn(2, *FLOW)
    expected = torch.nn.functional.avg_pool2d(x.flatten(0, 1), (2, 4)).unflatten(0, (2, 3))
    torch.testing.assert_close(BlockMean(FLOW, (2, 4))(x), expected)


def test_vorticity() -> None:
    """Of a rotation that is constant along one axis, and by central differences of any field."""
    n = 64
    x = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    u, v = x.sin()[None, :].expand(n, n), (2 * x).sin()[:, None].expand(n, n)
    omega = Vorticity((1, 2, n, n))(torch.stack([u, v])[None, None])[0, 0]
    exact = (2 * (2 * x).cos())[:, None] - x.cos()[None, :]
    torch.testing.assert_close(omega, exact, rtol=0, atol=2e-2)

    field = torch.randn(5, *FLOW, dtype=torch.float64)
    torch.testing.assert_close(Vorticity(FLOW)(field), vorticity(field))
    u, v = field.unbind(dim=2)
    expected = (v.roll(-1, 2) - v.roll(1, 2)) / 0.2 - (u.roll(-1, 3) - u.roll(1, 3)) / 0.4
    result = Vorticity(FLOW, (0.1, 0.2))(field)
    torch.testing.assert_close(result, expected)


def test_composition_is_a_product_of_matrices() -> None:
    inner = Vorticity(FLOW)
    outer = BlockMean(inner.shape, (2, 2))
    torch.testing.assert_close((outer @ inner).matrix(), outer.matrix() @ inner.matrix())
    assert isinstance(outer @ inner, Composition)


@pytest.mark.parametrize("left", [True, False])
def test_long_composition(left: bool) -> None:
    """Each operator is evaluated once, however many there are and however they are bracketed."""
    calls = []
    shrink = Pointwise(lambda x: calls.append(1) or x / 2, (3,), lambda x: torch.full_like(x, 0.5))
    chain = [Linear((3,), 2 * torch.eye(3)), shrink] * 200
    A = reduce(lambda a, b: a @ b, chain) if left else reduce(lambda a, b: b @ a, chain[::-1])
    x, cotangent = torch.randn(2, 2, 3)
    assert torch.equal(A(x), x)
    calls.clear()
    assert torch.equal(A.vjp(x, cotangent), cotangent)
    assert len(calls) == 199  # what the outermost one gives is not asked for


def test_composition_with_hooks_is_called() -> None:
    A = LINEAR["block mean"]
    inner = Linear(A.shape, torch.eye(A.shape.numel()), A.shape) @ A
    inner.register_forward_hook(lambda module, args, y: 2 * y)
    outer = Linear(A.shape, torch.eye(A.shape.numel()), A.shape)
    x = torch.randn(1, *A.event)
    torch.testing.assert_close((outer @ inner)(x), 2 * A(x))


def test_stack_is_matrices_one_upon_the_other() -> None:
    a, b = LINEAR["block mean"], LINEAR["vorticity"]
    assert torch.equal(Stack(a, b).matrix(), torch.cat([a.matrix(), b.matrix()]))


# As what guidance calls


class Shrink(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.tanh(x) * t


@pytest.mark.parametrize(
    ("A", "same"),
    [
        (Subsample((9, 3), slice(None, None, 4), slice(0, 1)), lambda x: x[:, ::4, :1]),
        (
            Pointwise(soft, (3, 1)) @ Subsample((9, 3), slice(None, None, 4), slice(0, 1)),
            lambda x: soft(x[:, ::4, :1]),
        ),
        (BlockMean((9, 3), (3, 1)), lambda x: x.unflatten(1, (3, 3)).mean(dim=2)),
    ],
    ids=["subsample", "pointwise", "block mean"],
)
def test_guidance(A: ObservationOperator, same: Callable[[Tensor], Tensor]) -> None:
    sde = VPSDE(Shrink(), shape=(9, 3))
    y, x, t = torch.randn(A.shape), torch.randn(5, 9, 3), torch.tensor(0.3)
    result, expected = (GaussianScore(y, f, 0.1, sde)(x, t) for f in (A, same))
    torch.testing.assert_close(result, expected)


WIDE: dict[str, ObservationOperator] = {
    "function": Function(lambda x: x.double(), (3,), (3,)),
    "linear function": Function(lambda x: x.double(), (3,), (3,), linear=True),
    "stack": Stack(
        Linear((3,), torch.ones(2, 3)),
        Function(lambda x: x.double(), (3,), (3,)),
        Linear((3,), torch.eye(3, dtype=torch.float64).to_sparse()),
        Pointwise(soft, (3,)),
    ),
    "composition": Pointwise(soft, (3,)) @ Function(lambda x: x.double(), (3,), (3,)),
}


@pytest.mark.parametrize("guide", [GaussianScore, MMPSGaussianScore])
@pytest.mark.parametrize("A", list(WIDE.values()), ids=list(WIDE))
def test_observation_of_a_wider_type(
    A: ObservationOperator, guide: Callable[..., torch.nn.Module]
) -> None:
    """The gradient is of the states' type, as guidance has it."""
    x, y, t = torch.randn(5, 3), torch.randn(A.shape), torch.tensor(0.3)
    assert A(x).dtype == torch.float64
    assert A.vjp(x, A(x)).dtype == torch.float32
    sde = VPSDE(Shrink(), shape=(3,))
    result, expected = (guide(y, f, 0.1, sde)(x, t) for f in (A, A.__call__))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


# Observations


def test_check() -> None:
    A = Subsample((9, 3), slice(None, None, 4), slice(0, 1))
    y = torch.randn(3, 1)
    y[1] = torch.nan
    assert A.check(y) is y
    assert A.check(y.expand(5, 3, 1)).shape == (5, 3, 1)
    assert A.check(np.zeros((3, 1))).dtype == torch.float64
    assert A.check(np.arange(3.0).astype(">f4")[::-1, None]).tolist() == [[2], [1], [0]]
    with pytest.raises(TypeError, match="y must be of floating point, but is int64"):
        A.check(torch.ones(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"y must have the shape .* \(3, 1\).* but has \(3,\)"):
        A.check(y[:, 0])
    y[2] = -torch.inf
    with pytest.raises(ValueError, match=r"infinite in 1 of 3 elements, the first at .*\(2, 0\)"):
        A.check(y)


def test_shapes_are_checked() -> None:
    A = Subsample((9, 3), slice(None, None, 4))
    with pytest.raises(ValueError, match=r"x must have shape \(B, 9, 3\), but has \(9, 3\)"):
        A(torch.ones(9, 3))
    with pytest.raises(ValueError, match=r"cotangent must have shape \(B, 3, 3\), but has"):
        A.vjp(torch.ones(2, 9, 3), torch.ones(2, 3, 1))
    with pytest.raises(ValueError, match=r"cotangent must have a batch of 2, .* but has 1"):
        A.vjp(torch.ones(2, 9, 3), torch.ones(1, 3, 3))
    with pytest.raises(ValueError, match="A must be differentiable"):
        Function(torch.zeros_like, (3,), (3,)).vjp(torch.ones(1, 3), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Subsample((9,), slice(None, None, -1)), ValueError, r"slices\[0\] .* at least 1"),
        (lambda: Subsample((9,), slice(None, None, 0)), ValueError, r"slices\[0\] .* at least 1"),
        (lambda: Subsample((9,), slice(9, None)), ValueError, r"slices\[0\] must hold some of 9"),
        (lambda: Subsample((9,), 0), TypeError, r"slices\[0\] must be a slice, but is 0"),
        (lambda: Subsample((9,), slice(3), slice(3)), ValueError, r"at most 1, .* but are 2"),
        (lambda: Subsample(()), ValueError, r"event must have 1 to 8 dimensions, but is \(\)"),
        (lambda: Subsample((1,) * 9), ValueError, "event must have 1 to 8 dimensions, but is"),
        (lambda: Subsample((0, 3)), ValueError, "must hold some of 0 places"),
        (lambda: Select((4, 3), torch.tensor([12])), ValueError, "column must be .* below 12"),
        (lambda: Select((4, 3), torch.tensor([-1])), ValueError, "column must be at least 0"),
        (lambda: Select((4, 3), torch.tensor([[0, 3]])), ValueError, "where must lie in a state"),
        (lambda: Select((4, 3), torch.ones(4, dtype=torch.bool)), ValueError, "a mask of shape"),
        (lambda: Select((4,), torch.zeros(4, dtype=torch.bool)), ValueError, "selects none"),
        (lambda: Select((4, 3), torch.ones(4)), TypeError, "boolean or integer, but is float32"),
        (lambda: Select((4, 3), torch.ones(1, 3).long()), ValueError, r"shape \(M,\) or \(M, 2\)"),
        (lambda: Interpolate((4, 8), torch.tensor([[3.1, 0]])), ValueError, "from 0 to 3, but is"),
        (lambda: Interpolate((4, 8), torch.tensor([[0, -1]])), ValueError, r"points\[:, 1\] must"),
        (lambda: Interpolate((4, 8), torch.tensor([[0, torch.nan]])), ValueError, "be finite"),
        (lambda: Interpolate((4, 8), torch.ones(2, 3)), ValueError, r"points must have shape"),
        (lambda: Interpolate((4,), torch.ones(2, 2)), ValueError, "at least 2 dimensions"),
        (
            lambda: Interpolate(FLOW, torch.ones(2, 2), torch.tensor([0, 3])),
            ValueError,
            "times must be from 0 to 2, but is from 0.0 to 3.0",
        ),
        (
            lambda: Interpolate(FLOW, torch.ones(2, 2), torch.zeros(3)),
            ValueError,
            r"times must have shape \(2,\), but has \(3,\)",
        ),
        (lambda: BlockMean((4, 8), (3,)), ValueError, r"block must divide .*, but is \(3,\)"),
        (lambda: BlockMean((4,), ()), ValueError, r"block must have 1 to 8 sizes, but is \(\)"),
        (lambda: BlockMean((1,) * 9, (1,) * 9), ValueError, "block must have 1 to 8 sizes"),
        (lambda: entries(2, 1), ValueError, r"column must .* as row, shape \(2,\), but has \(1,\)"),
        (lambda: entries(2, 2, 3), ValueError, r"value must have .* \(2,\), but has \(3,\)"),
        (
            lambda: SparseMap((3,), (2,), torch.ones(1, 1).long(), torch.ones(1, 1).long()),
            ValueError,
            r"row must have shape \(J,\), but has \(1, 1\)",
        ),
        (
            lambda: SparseMap((2, 3), (5, 2), torch.ones(1).long(), torch.ones(1).long(), None, 1),
            ValueError,
            r"shape must begin with the 1 leading dimensions of \(2, 3\), but is \(5, 2\)",
        ),
        (lambda: BlockMean((4,), (1, 4)), ValueError, "block must divide"),
        (lambda: Linear((4, 3), torch.ones(2, 5)), ValueError, "as many columns .* but has 5"),
        (lambda: Linear((4, 3), torch.ones(12)), ValueError, r"shape \(M, N\), but has \(12,\)"),
        (lambda: Linear((3,), torch.ones(2, 3), (3,)), ValueError, "shape must have 2 elements"),
        (lambda: Vorticity((3, 4, 8)), ValueError, r"event must be \(\*, 2, H, W\)"),
        (lambda: Vorticity(FLOW, 0.0), ValueError, "spacing must be positive"),
        (lambda: Stack(), ValueError, "operators must be at least one"),
        (
            lambda: Stack(BlockMean((4,), (2,)), BlockMean((6,), (2,))),
            ValueError,
            r"operators\[1\] must observe states of shape \(4,\)",
        ),
        (
            lambda: BlockMean((4,), (2,)) @ BlockMean((6,), (2,)),
            ValueError,
            r"outer must take what inner gives, of shape \(3,\), but takes \(4,\)",
        ),
        (lambda: BlockMean((4,), (2,)) @ torch.ones(4, 4), TypeError, "unsupported operand"),
        (
            lambda: Pointwise(torch.sum, (3,))(torch.ones(2, 3)),
            ValueError,
            r"function must be elementwise, but maps \(2, 3\) to \(\)",
        ),
        (
            lambda: Function(lambda x: x, (3,), (2,))(torch.ones(1, 3)),
            ValueError,
            r"A must map \(1, 3\) to \(1, 2\), but gives \(1, 3\)",
        ),
    ],
)
def test_errors(make: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def entries(rows: int, columns: int, values: int | None = None) -> SparseMap:
    value = None if values is None else torch.ones(values)
    return SparseMap((3,), (2,), torch.zeros(rows).long(), torch.zeros(columns).long(), value)


@pytest.mark.parametrize(
    "A",
    [
        Linear((4,), torch.full((1, 4), 0.5)),
        Linear((4,), torch.full((1, 4), 0.5).to_sparse()),
        Interpolate((2, 2), torch.tensor([[0.5, 0.25]])),
    ],
    ids=["dense", "sparse", "interpolate"],
)
def test_integer_states(A: ObservationOperator) -> None:
    """Weights are not rounded to their type, in which each of these is 0."""
    x, y = torch.arange(4).reshape(1, *A.event), torch.ones(1, *A.shape)
    torch.testing.assert_close(A(x), A(x.float()))
    torch.testing.assert_close(A.vjp(x, y.long()), A.vjp(x.float(), y))
    places = Select((4,), torch.tensor([2, 0]))
    assert places(torch.arange(4)[None]).tolist() == [[2, 0]]


DOCUMENTATION = Path(__file__).parents[1] / "docs" / "observation.md"


@pytest.mark.skipif(not DOCUMENTATION.is_file(), reason="there is no source tree here")
def test_documentation() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENTATION.read_text(), re.M | re.S)
    assert len(blocks) > 8
    exec(compile("\n".join(blocks), DOCUMENTATION.name, "exec"), {})


@pytest.mark.parametrize("buffer", ["value", "column"])
def test_a_sparse_matrix_that_is_changed_in_place(buffer: str):
    """So is its transpose, of copies too, and of one converted since."""
    A = Interpolate((5, 3), torch.rand(4, 2) * torch.tensor([3.5, 1.5]))
    x, v = torch.randn(2, 5, 3), torch.randn(2, 4)
    before = A.vjp(x, v)
    for k, each in enumerate((A, copy.deepcopy(A), copy.deepcopy(A).double()), start=1):
        entries = getattr(each, buffer)
        entries.copy_(entries.flip(0)) if buffer == "column" else entries.mul_(1.0 + k)
        states, cotangents = (z.to(each.value.dtype) for z in (x, v))
        gradient = each.vjp(states, cotangents)
        dense = each.matrix(states.dtype)
        expected = (cotangents.flatten(1) @ dense).reshape(gradient.shape)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(each(states).flatten(1), states.flatten(1) @ dense.T)
        assert not torch.allclose(gradient.float(), before)
