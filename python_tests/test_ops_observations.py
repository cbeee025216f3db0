"""The operators that observe: native against the reference, and what torch asks of them."""

from collections.abc import Callable, Iterator
from math import prod

import pytest
import torch
from torch import Tensor

from sda_fast import _native, ops, reference

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

NATIVE = torch.ops.sda_fast
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def native(name: str, *args: object, **kwargs: object) -> Tensor:
    with ops.backend("native"):
        return getattr(ops, name)(*args, **kwargs)


def close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compares with float64, to the rounding of a type; of a half type, once."""
    assert result.dtype == dtype
    assert result.is_contiguous()
    rtol = 1e-13 if dtype == torch.float64 else 2e-6
    rtol += torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    atol = 1e-13 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=atol)


def scattered(x: Tensor) -> Tensor:
    """Returns a copy of a tensor that is not contiguous: every other element, dimensions turned."""
    y = torch.zeros(*reversed(x.shape), 2, dtype=x.dtype)[..., 0]
    y = y.permute(tuple(reversed(range(x.ndim))))
    y.copy_(x)
    return y


# leading and trailing dimensions; start, step and size of the latter
SLICES = [
    ((), (7,), (2,), (3,), (2,)),
    ((3,), (9, 3), (0, 0), (4, 1), (3, 1)),
    ((2, 3), (4, 6, 5), (1, 0, 0), (2, 1, 1), (2, 6, 5)),
    ((2,), (4, 2, 8, 12), (0, 0, 1, 3), (1, 1, 3, 4), (4, 2, 3, 3)),
    ((2,), (4, 2, 8, 12), (0, 0, 0, 4), (1, 1, 1, 1), (4, 2, 8, 8)),
    ((2,), (4, 6, 600), (0, 2, 0), (1, 1, 1), (4, 3, 600)),
    ((2,), (4, 6), (0, 0), (1, 1), (4, 6)),
    ((2,), (4, 6), (3, 9), (9, 9), (1, 0)),
    ((0,), (4, 6), (3, 0), (9, 2), (1, 2)),
    ((2,), (1, 2, 1, 2, 1, 3, 2, 3), (0,) * 8, (1, 2) * 4, (1, 1, 1, 1, 1, 2, 2, 2)),
]
# leading dimensions, size and block of the trailing ones
BLOCKS = [
    ((), (3,), (4,)),
    ((3,), (2, 3), (4, 1)),
    ((2, 3), (4, 6, 5), (1, 1, 2)),
    ((2,), (3, 2, 4, 5), (2, 1, 3, 4)),
    ((2,), (2, 2, 600), (2, 3, 1)),
    ((2,), (2, 1100), (3, 2)),
    ((2,), (3, 5), (2, 8)),
    ((2,), (4, 6), (1, 1)),
    ((2,), (4, 0), (3, 2)),
    ((0,), (4, 6), (3, 1)),
    ((2,), (1, 2, 1, 2, 1, 1, 2, 2), (1, 2) * 4),
]


@each_dtype
@pytest.mark.parametrize(("leading", "shape", "start", "step", "size"), SLICES, ids=str)
def test_subsample(
    leading: tuple[int, ...],
    shape: tuple[int, ...],
    start: tuple[int, ...],
    step: tuple[int, ...],
    size: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    x = torch.randn(*leading, *shape).to(dtype)
    y = native("subsample", x, start, step, size)
    assert torch.equal(y, reference.subsample(x, start, step, size))
    assert y.shape == (*leading, *size)
    assert torch.equal(native("subsample", scattered(x), start, step, size), y)

    back = native("subsample_adjoint", y, start, step, shape)
    assert torch.equal(back, reference.subsample_adjoint(y, start, step, list(shape)))
    assert torch.equal(native("subsample_adjoint", scattered(y), start, step, shape), back)
    assert torch.equal(native("subsample", back, start, step, size), y)
    assert torch.equal(back != 0, (back == x) & (x != 0))


@each_dtype
@pytest.mark.parametrize(("leading", "size", "block"), BLOCKS, ids=str)
def test_block_mean(
    leading: tuple[int, ...], size: tuple[int, ...], block: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(*leading, *(n * k for n, k in zip(size, block, strict=True))).to(dtype)
    y = native("block_mean", x, block)
    assert y.shape == (*leading, *size)
    close(y, reference.block_mean(x.double(), list(block)), dtype)
    assert torch.equal(native("block_mean", scattered(x), block), y)

    back = native("block_mean_adjoint", y, block)
    close(back, reference.block_mean_adjoint(y.double(), list(block)), dtype)
    assert torch.equal(native("block_mean_adjoint", scattered(y), block), back)
    if dtype == torch.float64:  # the mean of what was spread is the mean over a block's size
        torch.testing.assert_close(native("block_mean", back, block), y / prod(block))


def matrix(rows: int, columns: int, entries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a random matrix, some of whose rows are empty and some entries in one place."""
    row = torch.randint(rows, (entries,)).bincount(minlength=rows).cumsum(0)
    row = torch.cat([torch.zeros(1, dtype=torch.int64), row])
    return row, torch.randint(columns, (entries,)), torch.randn(entries, dtype=torch.float64)


@each_dtype
@pytest.mark.parametrize("values", [True, False], ids=["values", "ones"])
@pytest.mark.parametrize(
    ("batch", "rows", "event", "entries"),
    [
        (3, 5, (4, 2), 20),
        (19, 5, (4,), 20),
        (1, 1, (1,), 1),
        (2, 700, (300,), 900),
        (0, 3, (4,), 5),
        (2, 3, (4,), 0),
    ],
)
def test_sparse_map(
    batch: int, rows: int, event: tuple[int, ...], entries: int, values: bool, dtype: torch.dtype
) -> None:
    row, column, value = matrix(rows, prod(event), entries)
    value = value if values else None
    x = torch.randn(batch, *event).to(dtype)
    y = native("sparse_map", x, row, column, value)
    assert y.shape == (batch, rows)
    wide = None if value is None else value.to(torch.promote_types(dtype, torch.float32))
    close(y, reference.sparse_map(x.double(), row, column, wide), dtype)
    assert torch.equal(native("sparse_map", scattered(x), row, column, value), y)

    if dtype == torch.float64:  # <A x, c> = <x, A^T c>
        transposed = ops.transpose(row, column, value, prod(event))
        c = torch.randn_like(y)
        back = native("sparse_map", c, *transposed)
        torch.testing.assert_close((y * c).sum(), (x.flatten(1) * back).sum())


@each_dtype
@pytest.mark.parametrize("values", [True, False], ids=["values", "ones"])
@pytest.mark.parametrize("odd", [None, 3, 20], ids=["alike", "row 3 longer", "row 20 longer"])
@pytest.mark.parametrize(("rows", "batch"), [(16, 8), (40, 19), (70, 9)])
def test_sparse_map_of_neighbours(
    rows: int, batch: int, odd: int | None, values: bool, dtype: torch.dtype
) -> None:
    """Rows that are alike and read neighbours are worked on together, to the same bits."""
    row = torch.arange(rows)
    entry = torch.stack([(row + shift) % rows for shift in (1, -1, 2)]).T.flatten()
    count = torch.full((rows,), 3)
    if odd is not None and odd < rows:
        count[odd] += 1
        entry = entry.tensor_split([3 * odd])
        entry = torch.cat([entry[0], torch.tensor([0]), entry[1]])
    matrix = [torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)]), entry]
    matrix.append(torch.randn(len(entry), dtype=torch.float64) if values else None)

    x = torch.randn(batch, rows).to(dtype)
    y = native("sparse_map", x, *matrix)
    assert torch.equal(y, torch.cat([native("sparse_map", each, *matrix) for each in x.split(1)]))
    wide = matrix[2].to(torch.promote_types(dtype, torch.float32)) if values else None
    close(y, reference.sparse_map(x.double(), *matrix[:2], wide), dtype)


@each_dtype
@pytest.mark.parametrize("y_shape", [(), (5,), (4, 5), (1, 5), (3, 4, 5), (600,)], ids=str)
@pytest.mark.parametrize("uniform_std", [True, False])
@pytest.mark.parametrize("uniform_gamma", [True, False])
def test_residual(
    y_shape: tuple[int, ...], uniform_std: bool, uniform_gamma: bool, dtype: torch.dtype
) -> None:
    shape = (3, 600) if y_shape == (600,) else (3, 4, 5)
    y, prediction = torch.randn(y_shape), torch.randn(shape).to(dtype)
    std = torch.rand(() if uniform_std else y_shape) + 0.1
    gamma = torch.rand(() if uniform_gamma else y_shape[-1:])
    if y_shape:
        y[..., 2] = torch.nan
        prediction[1, ..., 2] = torch.nan
        prediction[2, ..., 2] = torch.inf
    result = native("residual", y, prediction, std, gamma, 0.7)
    wide = (t.double() for t in (y, prediction, std, gamma))
    expected = reference.residual(*wide, 0.7)
    assert result.shape == shape
    assert not y_shape or (result[..., 2] == 0).all()
    close(result, expected, dtype)
    assert torch.equal(native("residual", y, scattered(prediction), std, gamma, 0.7), result)


def test_residual_is_the_gradient_of_a_normal_density() -> None:
    y, std, gamma, ratio = torch.randn(5).double(), torch.rand(5).double(), 0.2, 1.5
    prediction = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    scale = (std**2 + gamma * ratio**2).sqrt()
    density = torch.distributions.Normal(prediction, scale).log_prob(y).sum()
    result = native("residual", y, prediction.detach(), std, torch.tensor(gamma), ratio)
    torch.testing.assert_close(result, torch.autograd.grad(density, prediction)[0])


def test_gradients_of_what_was_observed_use_the_reference() -> None:
    prediction = torch.randn(3, 5, dtype=torch.float64)
    y, std = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.1
    args = tuple(t.requires_grad_() for t in (y, prediction, std, torch.tensor(0.2).double()))
    assert torch.autograd.gradcheck(lambda *args: ops.residual(*args, 0.7), args)
    row, column, value = matrix(5, 4, 9)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    value.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, v: ops.sparse_map(x, row, column, v), (x, value))


@each_dtype
def test_results_do_not_depend_on_the_threads(
    dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    x = torch.randn(5, 6, 64, 64).to(dtype)
    row, column, value = matrix(5000, 64 * 64, 20000)
    y = torch.randn(64, 64)
    results = []
    for number in (1, 2, 3):
        threads(number)
        seen = native("subsample", x, (1, 1), (2, 3), (31, 21))
        means = native("block_mean", x, (2, 4, 2))
        results.append(
            [
                seen,
                native("subsample_adjoint", seen, (1, 1), (2, 3), (64, 64)),
                means,
                native("block_mean_adjoint", means, (2, 4, 2)),
                native("sparse_map", x.flatten(0, 1), row, column, value),
                native("residual", y, x, torch.tensor(0.1), torch.tensor(0.2), 0.5),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Gradients, and what torch asks of an operator


def arguments(name: str) -> tuple[object, ...]:
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    row, column, value = matrix(5, 24, 9)
    std, gamma = torch.rand(4, 1, dtype=torch.float64) + 0.1, torch.tensor(0.2).double()
    y = torch.randn(4, 6, dtype=torch.float64)
    y[1, 2] = torch.nan
    return {
        "subsample": (x, [1, 0], [2, 3], [2, 2]),
        "subsample_adjoint": (x, [1, 0], [2, 3], [9, 17]),
        "sparse_map": (x, row, column, value),
        "sparse_map transposed": ((x, row, column, value, *ops.transpose(row, column, value, 24))),
        "sparse_map ones": (x, row, column, None),
        "block_mean": (x, [2, 3]),
        "block_mean_adjoint": (x, [2, 3]),
        "residual": (y, x, std, gamma, 0.7),
    }[name]


NAMES = [
    "subsample",
    "subsample_adjoint",
    "sparse_map",
    "sparse_map transposed",
    "sparse_map ones",
    "block_mean",
    "block_mean_adjoint",
    "residual",
]


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    args = arguments(name)
    state = args[1] if name == "residual" else args[0]
    state.requires_grad_()  # type: ignore[attr-defined]
    torch.library.opcheck(getattr(NATIVE, name.split()[0]), args)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    args = list(arguments(name))
    place = 1 if name == "residual" else 0

    def f(x: Tensor) -> Tensor:
        return getattr(NATIVE, name.split()[0])(*args[:place], x, *args[place + 1 :])

    x = args[place].requires_grad_()  # type: ignore[attr-defined]
    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


def test_compiled() -> None:
    row, column, value = matrix(5, 12, 9)

    def f(x: Tensor) -> Tensor:
        y = ops.block_mean(ops.subsample(x, (0, 1), (2, 1), (3, 4)), (1, 2))
        z = ops.sparse_map(x[:, :4, :3], row, column, value)
        r = ops.residual(z[0], z, torch.tensor(0.1), torch.tensor(0.2), 0.5)
        return y.sum() + r.square().sum()

    x = torch.randn(2, 6, 5, requires_grad=True)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x))
    gradients = [torch.autograd.grad(g(x), x)[0] for g in (compiled, f)]
    torch.testing.assert_close(*gradients)


# Errors

X, ROW, COLUMN = torch.zeros(2, 4, 6), torch.tensor([0, 1, 3]), torch.tensor([0, 23, 5])
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: NATIVE.subsample(X, [], [], []), r"start must have 1 to 8 number\(s\), but is \["),
        (lambda: NATIVE.subsample(X, [0] * 4, [1] * 4, [1] * 4), "x must have at least 4 dim"),
        (lambda: NATIVE.subsample(X, [0], [1, 1], [1]), r"step must have 1 .* is \[1, 1\]"),
        (lambda: NATIVE.subsample(X, [0], [1], [1, 1]), r"size must have 1 .* is \[1, 1\]"),
        (lambda: NATIVE.subsample(X, [-1], [1], [1]), r"start\[0\] is -1"),
        (lambda: NATIVE.subsample(X, [0], [0], [1]), r"step\[0\] is 0"),
        (lambda: NATIVE.subsample(X, [0], [1], [-1]), r"size\[0\] is -1"),
        (lambda: NATIVE.subsample(X, [1], [2], [4]), r"size\[0\], 4, from start 1 .* of 6, but"),
        (lambda: NATIVE.subsample(X, [1], [2**62], [4]), r"size\[0\], 4, from start 1"),
        (lambda: NATIVE.subsample(X.int(), [0], [1], [1]), "x must be float32.* but is int32"),
        (lambda: NATIVE.subsample_adjoint(X, [0], [1], [5]), r"size\[0\], 6, .* of 5, but does"),
        (lambda: NATIVE.subsample_adjoint(X, [0], [1], [-1]), r"shape must .* but is \[-1\]"),
        (lambda: NATIVE.subsample_adjoint(X, [0], [1], [2**62]), r"shape must .* fewer than 2\^63"),
        (lambda: NATIVE.block_mean(X, [5]), r"block must divide .* block\[0\] is 5 and x has"),
        (lambda: NATIVE.block_mean(X, [0, 2]), r"block must be at least 1, but block\[0\] is 0"),
        (lambda: NATIVE.block_mean_adjoint(X, [-2]), r"block must be at least 1"),
        (lambda: NATIVE.block_mean_adjoint(X, [2**62]), r"block must make states of fewer"),
        (lambda: NATIVE.sparse_map(X, ROW.int(), COLUMN, None), "row must be int64 .* is int32"),
        (lambda: NATIVE.sparse_map(X, ROW[:0], COLUMN, None), "row must have a number more"),
        (
            lambda: NATIVE.sparse_map(X, ROW[:2], COLUMN, None),
            "from 0 to the 3 .* to 1",
        ),
        (
            lambda: NATIVE.sparse_map(X, torch.tensor([0, 4, 3]), COLUMN, None),
            r"row must be ascending, but row\[2\] is 3 after 4",
        ),
        (lambda: NATIVE.sparse_map(X, ROW, COLUMN + 1, None), r"below the 24 .* column\[1\] is 24"),
        (lambda: NATIVE.sparse_map(X, ROW, COLUMN - 1, None), r"column\[0\] is -1"),
        (lambda: NATIVE.sparse_map(X, ROW, COLUMN, torch.ones(2)), r"value must be float32 of .*3"),
        (lambda: NATIVE.sparse_map(X, ROW, COLUMN, torch.ones(3).half()), "but is float16"),
        (lambda: NATIVE.residual(X[0, 0, :5], X, ONE, ONE, 1.0), r"y must broadcast to the last"),
        (lambda: NATIVE.residual(X[None], X, ONE, ONE, 1.0), r"y must broadcast to prediction"),
        (lambda: NATIVE.residual(X[0], X, X, ONE, 1.0), r"std must broadcast to y, of .*\[4, 6\]"),
        (lambda: NATIVE.residual(X[0], X, ONE, X[0, :3], 1.0), "gamma must broadcast to y"),
        (lambda: NATIVE.residual(X[0].half(), X.half(), ONE, ONE, 1.0), "y must be float32 beside"),
    ],
)
def test_errors(call: Callable[[], object], says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        call()


@pytest.mark.parametrize("name", ["sparse_map", "residual"])
def test_tensors_of_two_devices_are_refused(name: str) -> None:
    first, second, *others = arguments(name)
    elsewhere = second.to("meta")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="must be on the same device"):
        getattr(NATIVE, name)(first, elsewhere, *others)
