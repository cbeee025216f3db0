"""Every native operator against its reference, and what torch asks of an operator."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextvars import copy_context

import pytest
import torch
from torch import Tensor

from sda_fast import _native, ops, reference

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

NATIVE = torch.ops.sda_fast
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STREAM = {"seed": 2**63 + 12345, "step": 7, "correction": 3, "first_sample": 2**20}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Returns the rounding of a type; of a half type, once, of what is as good as float32's."""
    if dtype == torch.float64:
        return {"rtol": 0, "atol": 1e-13}
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    return {"rtol": rounding, "atol": 4e-6}  # of sums of nine numbers


def native(name: str, *args: object, **kwargs: object) -> Tensor:
    with ops.backend("native"):
        return getattr(ops, name)(*args, **kwargs)


def scattered(x: Tensor) -> Tensor:
    """Returns a copy of a tensor that is not contiguous: every other element, dimensions turned."""
    y = torch.zeros(*reversed(x.shape), 2, dtype=x.dtype)[..., 0]
    y = y.permute(tuple(reversed(range(x.ndim))))
    y.copy_(x)
    return y


# Windows

CENTRE = "centre"
JUNCTION = "junction"
RAGGED = "ragged"


def plan(kind: str, states: int, window: int) -> tuple[Tensor, Tensor]:
    """Returns the starts and weights of a plan: the published one, one with overlaps taken away,
    or one of random lengths and weights that hangs over the end."""
    if kind == CENTRE:
        start = torch.arange(states - window + 1)
        weight = torch.zeros(len(start), window, dtype=torch.int8)
        weight[:, window // 2] = 1
        weight[0, : window // 2] = 1
        weight[-1, window // 2 :] = 1
    elif kind == JUNCTION:
        stride = max(1, window // 2)
        rows = []
        for s in range(0, states - window + 1, stride):
            if s > 0:
                overlap = [-1] * (window - stride) + [0] * stride
                rows.append((s, overlap))
            rows.append((s, [1] * window))
        start = torch.tensor([s for s, _ in rows])
        weight = torch.tensor([w for _, w in rows], dtype=torch.int8)
    else:
        generator = torch.Generator().manual_seed(states)
        start = torch.randint(0, states, (2 * states,), generator=generator).sort().values
        weight = torch.randint(-1, 2, (2 * states, window), generator=generator).to(torch.int8)
        weight[start[:, None] + torch.arange(window) >= states] = 0
    return start, weight


PLANS = [
    (kind, states, window)
    for kind in (CENTRE, JUNCTION, RAGGED)
    for states, window in ((5, 5), (9, 3), (33, 9), (257, 5))
]
EVENTS = [(3,), (2, 4), (2, 3, 4), (1, 2, 3, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "states", "window"), PLANS)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_gather_and_compose(
    kind: str, states: int, window: int, event: tuple[int, ...], dtype: torch.dtype
) -> None:
    start, weight = plan(kind, states, window)
    for batch in (0, 1, 3):
        x = torch.randn(batch, states, *event, dtype=dtype)
        gathered = native("gather", x, start, weight)
        assert torch.equal(gathered, reference.gather(x, start, weight))
        assert gathered.shape == (batch, len(start), window * event[0], *event[1:])

        windows = torch.randn_like(gathered)
        composed = native("compose", windows, start, weight, states)
        expected = reference.compose(windows.double(), start, weight, states)
        torch.testing.assert_close(composed.double(), expected, **tolerance(dtype))
        assert composed.shape == x.shape
        assert composed.dtype == dtype

        assert torch.equal(native("gather", scattered(x), start, weight), gathered)
        assert torch.equal(native("compose", scattered(windows), start, weight, states), composed)
        if dtype == torch.float64:  # <gather x, w> = <x, compose w>
            torch.testing.assert_close((gathered * windows).sum(), (x * composed).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_compose_of_a_published_plan_is_exact(dtype: torch.dtype) -> None:
    """Gathering and composing with one weight a state gives the trajectory back."""
    start, weight = plan(CENTRE, 17, 5)
    x = torch.randn(2, 17, 3, dtype=dtype)
    assert torch.equal(native("compose", native("gather", x, start, weight), start, weight, 17), x)


@pytest.mark.parametrize("kind", [CENTRE, JUNCTION, RAGGED])
@pytest.mark.parametrize("row", [15, 16, 17, 300, 1100])
def test_compose_of_long_rows(row: int, kind: str) -> None:
    """Rows of more than a cache line are asked for ahead, of the next sample too."""
    for states, window in ((5, 5), (33, 9), (130, 5)):
        start, weight = plan(kind, states, window)
        windows = torch.randn(3, len(start), window * row)
        x = torch.randn(3, states, row)
        expected = reference.compose(windows.double(), start, weight, states)
        composed, denoised = native("compose_denoise", windows, start, weight, x, 0.7, 0.4)
        torch.testing.assert_close(composed.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(denoised, (x - 0.4 * composed) / 0.7)
        assert torch.equal(native("compose", windows, start, weight, states), composed)


def test_rows_of_weight_zero_are_not_read() -> None:
    start, weight = plan(RAGGED, 11, 4)
    windows = torch.randn(2, len(start), 4, 3)
    expected = native("compose", windows.flatten(2), start, weight, 11)
    windows[:, weight == 0] = torch.nan
    assert torch.equal(native("compose", windows.flatten(2), start, weight, 11), expected)

    x = torch.full((2, 11, 3), torch.nan)
    assert (native("gather", x, start, weight).unflatten(2, (4, 3))[:, weight == 0] == 0).all()


def test_no_windows() -> None:
    start, weight = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int8)
    x = torch.randn(2, 5, 4)
    assert native("gather", x, start, weight).shape == (2, 0, 12)
    assert torch.equal(
        native("compose", torch.zeros(2, 0, 12), start, weight, 5), torch.zeros_like(x)
    )


# Predictor and corrector

SHAPES = [
    (0, 3),
    (1,),
    (3, 1),
    (2, 5),
    (1, 63),
    (2, 64),
    (2, 65),
    (3, 4099),
    (2, 3, 4, 5, 6),
    (2, 0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), *SHAPES], ids=str)
def test_predictor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, eps = torch.randn(2, *shape, dtype=dtype)
    expected = reference.predictor(x.double(), eps.double(), 0.9, -0.3)
    result = native("predictor", x, eps, 0.9, -0.3)
    torch.testing.assert_close(result.double(), expected, **tolerance(dtype))

    for work in (x.clone(), scattered(x)):
        native("predictor_", work, scattered(eps), 0.9, -0.3)
        assert torch.equal(work, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_langevin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, eps = torch.randn(2, *shape, dtype=dtype)
    result = native("langevin", x, eps, 0.3, 0.5, **STREAM)
    assert result.shape == shape
    assert result.dtype == dtype
    if x.numel() > 0:
        wide = (t.double().reshape(len(t), -1) for t in (x, eps))
        expected = reference.langevin(*wide, 0.3, 0.5, **STREAM).reshape(shape)
        # delta may be large where an event has few elements
        rtol = tolerance(dtype)["rtol"] + (1e-12 if dtype == torch.float64 else 1e-5)
        torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=3e-6)

    for work in (x.clone(), scattered(x)):
        native("langevin_", work, scattered(eps), 0.3, 0.5, **STREAM)
        assert torch.equal(work, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_philox_normal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected = torch.zeros(*shape, dtype=torch.float64)
    reference.philox_normal_(expected, **STREAM)
    for out in (torch.zeros(*shape, dtype=dtype), scattered(torch.zeros(*shape, dtype=dtype))):
        native("philox_normal_", out, **STREAM)
        torch.testing.assert_close(out.double(), expected, **tolerance(dtype))


def test_langevin_leaves_still_samples() -> None:
    x, eps = torch.randn(3, 6), torch.randn(3, 6)
    eps[1] = 0
    result = native("langevin", x, eps, 0.3, 0.5, **STREAM)
    assert torch.equal(result[1], x[1])
    assert not (result[[0, 2]] == x[[0, 2]]).any()


def test_langevin_propagates_nan() -> None:
    x, eps = torch.randn(3, 70), torch.randn(3, 70)
    eps[1, 4] = torch.nan
    result = native("langevin", x, eps, 0.3, 0.5, **STREAM)
    assert result[1].isnan().all()
    assert result[[0, 2]].isfinite().all()


def test_in_place_on_itself_and_on_neighbours() -> None:
    """eps may be x, or share memory with it."""
    x = torch.randn(4, 9)
    expected = native("predictor", x, x, 0.9, 0.2)
    native("predictor_", x, x, 0.9, 0.2)
    assert torch.equal(x, expected)

    buffer = torch.randn(5, 9)
    expected = native("langevin", buffer[1:], buffer[:-1], 0.3, 0.5, **STREAM)
    native("langevin_", buffer[1:], buffer[:-1], 0.3, 0.5, **STREAM)
    assert torch.equal(buffer[1:], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("event", [(3,), (7, 3), (1000,), (3, 64, 64)], ids=str)
def test_noise_does_not_depend_on_the_batch(event: tuple[int, ...], dtype: torch.dtype) -> None:
    x, eps = torch.randn(2, 6, *event, dtype=dtype)
    stream = {"seed": 1, "step": 2, "correction": 3}
    whole = native("langevin", x, eps, 0.3, 0.5, **stream)
    parts = [
        native("langevin", x[i:j], eps[i:j], 0.3, 0.5, first_sample=i, **stream)
        for i, j in ((0, 1), (1, 4), (4, 6))
    ]
    assert torch.equal(torch.cat(parts), whole)

    z = torch.empty(6, 2 * x[0].numel(), dtype=dtype)
    native("philox_normal_", z, **stream)
    short = torch.empty(6, x[0].numel(), dtype=dtype)
    native("philox_normal_", short, **stream)
    assert torch.equal(short, z[:, : short.shape[1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_threads(
    dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    start, weight = plan(JUNCTION, 4097, 9)
    trajectory = torch.randn(3, 4097, 11, dtype=dtype)
    x, eps = torch.randn(2, 3, 100003, dtype=dtype)
    results = []
    for number in (1, 2, 3):
        threads(number)
        windows = native("gather", trajectory, start, weight)
        z = torch.empty_like(x)
        native("philox_normal_", z, **STREAM)
        results.append(
            [
                windows,
                native("compose", windows, start, weight, 4097),
                native("predictor", x, eps, 0.9, 0.1),
                native("langevin", x, eps, 0.3, 0.5, **STREAM),
                z,
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


ISA = """
import sys, torch
from sda_fast import _native, ops, reference
if not _native.available:
    print(_native.reason)
    sys.exit(77)
assert _native.info()["isa"] == sys.argv[1]
torch.manual_seed(0)
start = torch.tensor([0, 3, 3, 8])
weight = torch.tensor([[1, 1, 1, 1], [-1, -1, 0, 0], [1, 1, 1, 1], [1, -1, 1, 0]])
weight = weight.to(torch.int8)
stream = dict(seed=5, step=6, correction=7)
row, column = torch.tensor([0, 2, 2, 3]), torch.tensor([7, 400, 11])
y = 1 + torch.rand(11, 37)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    rtol = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    atol = 1e-13 if dtype == torch.float64 else 2e-6
    x, eps = torch.randn(2, 3, 11, 37, dtype=dtype)
    with ops.backend("native"):
        w = ops.gather(x, start, weight)
        results = [w, ops.compose(w, start, weight, 11), ops.predictor(x, eps, 0.9, 0.1),
                   ops.langevin(x, eps, 0.3, 0.5, **stream),
                   ops.subsample(x, (1, 2), (3, 4), (4, 9)), ops.block_mean(x, (3, 1, 1)),
                   ops.sparse_map(x, row, column), ops.residual(y, x, y[0], y[1], 0.5)]
    x, eps = x.double(), eps.double()
    w = reference.gather(x, start, weight)
    expected = [w, reference.compose(w, start, weight, 11), reference.predictor(x, eps, 0.9, 0.1),
                reference.langevin(x, eps, 0.3, 0.5, **stream),
                reference.subsample(x, (1, 2), (3, 4), (4, 9)),
                reference.block_mean(x, (3, 1, 1)), reference.sparse_map(x, row, column),
                reference.residual(y, x, y[0], y[1], 0.5)]
    for a, b in zip(results, expected):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol)

# every rounding: all numbers plus parts of their last place, exact in float32
for dtype in (torch.bfloat16, torch.float16):
    every = torch.arange(-32768, 32768, dtype=torch.int16)
    numbers, beyond = every.view(dtype), (every.clamp(max=32766) + 1).view(dtype)
    place = beyond.double() - numbers.double()
    finite = numbers.isfinite() & beyond.isfinite()
    x, eps = numbers[finite], place[finite].to(dtype)
    for b in (0.0, 0.25, 0.5 - 2**-12, 0.5, 0.5 + 2**-12, 0.75, 1.0, 1.5):
        exact = x.double() + b * eps.double()
        assert torch.equal(exact.float().double(), exact)
        with ops.backend("native"):
            assert torch.equal(ops.predictor(x, eps, 1.0, b), exact.float().to(dtype))
    for r in (1.0, -0.5, 1.25, 2.0**-20, 1000.0):  # infinities, NaN and subnormal numbers too
        with ops.backend("native"):
            result = ops.predictor(numbers, torch.zeros_like(numbers), r, 0.0)
        expected = (numbers.float() * torch.tensor(r)).to(dtype)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
"""


@pytest.mark.parametrize("isa", ["avx512bf16", "avx512", "avx2", "baseline"])
def test_every_instruction_set(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ISA, isa],
        env={**os.environ, "SDA_FAST_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 and "which this CPU does not have" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


# Gradients, and what torch asks of an operator


def arguments(name: str) -> tuple[object, ...]:
    start, weight = plan(RAGGED, 5, 3)
    x, eps = torch.randn(2, 2, 5, 2, dtype=torch.float64)
    windows = torch.randn(2, len(start), 6, dtype=torch.float64)
    return {
        "gather": (x, start, weight),
        "compose": (windows, start, weight, 5),
        "predictor": (x, eps, 0.9, 0.1),
        "predictor_": (x, eps, 0.9, 0.1),
        "langevin": (x, eps, 0.3, 0.5, 1, 2, 3, 4),
        "langevin_": (x, eps, 0.3, 0.5, 1, 2, 3, 4),
        "philox_normal_": (x, 1, 2, 3, 4),
    }[name]


FUNCTIONAL = ["gather", "compose", "predictor", "langevin"]
IN_PLACE = ["predictor_", "langevin_", "philox_normal_"]


@pytest.mark.parametrize("name", FUNCTIONAL + IN_PLACE)
def test_opcheck(name: str) -> None:
    args = arguments(name)
    if name in FUNCTIONAL:
        args = tuple(
            a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in args
        )
    torch.library.opcheck(getattr(NATIVE, name), args)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_gradients(name: str) -> None:
    args = arguments(name)
    inputs = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    rest = args[len(inputs) :]
    for tensor in inputs:
        tensor.requires_grad_()

    def f(*tensors: Tensor) -> Tensor:
        return getattr(NATIVE, name)(*tensors, *rest)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_gradients_of_half_types(name: str, dtype: torch.dtype) -> None:
    """They are computed in float32 too, and rounded as they are handed back."""
    args = arguments(name)
    count = sum(isinstance(a, Tensor) and a.is_floating_point() for a in args)
    half = [a.to(dtype).requires_grad_() for a in args[:count]]
    wide = [a.detach().double().requires_grad_() for a in half]
    cotangent = torch.randn_like(getattr(NATIVE, name)(*half, *args[count:]))

    results = []
    for inputs in (half, wide):
        result = getattr(NATIVE, name)(*inputs, *args[count:])
        results.append(torch.autograd.grad(result, inputs, cotangent.to(result.dtype)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_gradient_of_a_still_sample_is_finite() -> None:
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    eps = torch.zeros(2, 5, dtype=torch.float64)
    eps[0] = 1
    eps.requires_grad_()
    native("langevin", x, eps, 0.3, 0.5, **STREAM).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert (eps.grad[1] == 0).all()
    assert eps.grad[0].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (4,)], ids=str)
def test_gradients_of_small_shapes(shape: tuple[int, ...]) -> None:
    x, eps = (t.requires_grad_() for t in torch.randn(2, *shape, dtype=torch.float64))
    native("langevin", x, eps, 0.3, 0.5, **STREAM).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert eps.grad.shape == shape
    assert eps.grad.isfinite().all()


def test_in_place_with_gradients_uses_the_reference() -> None:
    leaf = torch.randn(2, 5, requires_grad=True)
    x = leaf * 1
    ops.predictor_(x, torch.ones(2, 5), 0.5, 0.1)
    x.sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 0.5))
    with pytest.raises(RuntimeError, match="keep no gradients"):
        native("predictor_", leaf * 1, torch.ones(2, 5), 0.5, 0.1)


def test_compiled() -> None:
    """The operators trace without a graph break, also where one is used twice."""
    start, weight = plan(JUNCTION, 9, 5)

    def f(x: Tensor, eps: Tensor) -> Tensor:
        once = ops.gather(x, start, weight)
        twice = ops.gather(2 * x, start, weight)
        y = ops.predictor(ops.compose(once + twice, start, weight, 9), eps, 0.9, 0.1)
        z = torch.empty_like(x)
        ops.philox_normal_(z, seed=1, step=2)
        return ops.langevin(ops.langevin(y + z, eps, 0.3, 0.5, seed=1, step=2), eps, 0.2, 0.5,
                            seed=1, step=3)  # fmt: skip

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x, eps = (t.requires_grad_() for t in torch.randn(2, 3, 9, 4))
    assert torch.equal(compiled(x, eps), f(x, eps))
    for a, b in zip(*(torch.autograd.grad(g(x, eps).square().sum(), (x, eps))
                      for g in (compiled, f)), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)

    x, eps = x.detach(), eps.detach()
    with ops.backend("reference"):  # compiled anew for another backend
        anew = torch.compile(f, backend="aot_eager")(x, eps)
        torch.testing.assert_close(anew, f(x, eps), rtol=0, atol=1e-6)


def test_transformations_use_the_reference() -> None:
    start, weight = plan(CENTRE, 9, 5)
    x = torch.randn(4, 2, 9, 3)
    gathered = torch.func.vmap(lambda x: ops.gather(x, start, weight))(x)
    assert torch.equal(gathered, torch.stack([ops.gather(y, start, weight) for y in x]))
    _, tangent = torch.func.jvp(lambda x: ops.gather(x, start, weight), (x[0],), (x[1],))
    assert torch.equal(tangent, ops.gather(x[1], start, weight))
    with torch.autograd.forward_ad.dual_level():
        dual = ops.predictor(torch.autograd.forward_ad.make_dual(x, x), x, 0.5, 0.1)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, 0.5 * x)


# Backends and errors


def test_backend() -> None:
    x, eps = torch.randn(2, 2, 100)
    with ops.backend("reference"):
        assert torch.equal(ops.predictor(x, eps, 0.9, 0.1), reference.predictor(x, eps, 0.9, 0.1))
        with ops.backend("native"):
            ops.predictor(x, eps, 0.9, 0.1)
    with pytest.raises(ValueError, match="backend must be one of auto, native, reference"):
        ops.backend("fast").__enter__()


def test_backends_of_several_threads() -> None:
    """Whose blocks overlap: torch.compile finds the default afterwards, as all else does."""
    threads = copy_context(), copy_context()
    blocks = ops.backend("native"), ops.backend("auto")
    for thread, block in zip(threads, blocks, strict=True):
        thread.run(block.__enter__)
    for thread, block in zip(threads, blocks, strict=True):
        thread.run(block.__exit__, None, None, None)

    x = torch.ones(2, 3, device="meta")  # not native
    torch.compile(lambda x: ops.predictor(x, x, 0.9, 0.1), backend="eager", fullgraph=True)(x)


def test_unserved_types() -> None:
    x = torch.ones(2, 3, dtype=torch.complex64)
    assert all(ops.unserved(torch.ones(2, dtype=dtype)) is None for dtype in DTYPES)
    assert "float32, float64, bfloat16 and float16, not complex64" in str(ops.unserved(x))
    assert torch.equal(ops.predictor(x, x, 0.5, 0.5), x)
    with pytest.raises(RuntimeError, match=r"the backend is native, but .* complex64"):
        native("predictor", x, x, 0.5, 0.5)
    assert "device meta" in str(ops.unserved(torch.ones(2, device="meta")))


X = torch.zeros(2, 5, 3)
START, WEIGHT = torch.tensor([0, 2]), torch.ones(2, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: NATIVE.gather(X[0], START, WEIGHT), r"x must have at least 3 .* shape \(5, 3\)"),
        (
            lambda: NATIVE.gather(X.int(), START, WEIGHT),
            "x must be float32, float64, bfloat16 or float16, but is int32",
        ),
        (lambda: NATIVE.gather(X, START.int(), WEIGHT), "start must be int64 .* is int32"),
        (lambda: NATIVE.gather(X, START, WEIGHT.long()), "weight must be int8 .* is int64"),
        (lambda: NATIVE.gather(X, START, WEIGHT[:1]), r"as many windows as start, 2, .* \(1, 3\)"),
        (
            lambda: NATIVE.gather(X, START.flip(0), WEIGHT),
            r"ascending, but start\[1\] is 0 after 2",
        ),
        (
            lambda: NATIVE.gather(X, START + 1, WEIGHT),
            r"start\[1\] \+ 2, .* 5 state\(s\), but is 5",
        ),
        (lambda: NATIVE.gather(X, START - 1, WEIGHT), r"start\[0\] \+ 0, .* but is -1"),
        (lambda: NATIVE.gather(X, START, 2 * WEIGHT), r"-1, 0 or \+1, but weight\[0, 0\] is 2"),
        (
            lambda: NATIVE.compose(X, START, WEIGHT, 5),
            r"windows must have shape \(B, 2, a multiple of 3",
        ),
        (
            lambda: NATIVE.compose(X[:, :2], START, WEIGHT, -1),
            "length must be at least 0, but is -1",
        ),
        (lambda: NATIVE.compose(X[:, :2], START, WEIGHT, 4), "the trajectory's 4 state"),
        (
            lambda: NATIVE.predictor(X, X[:1], 1.0, 1.0),
            r"eps must have the shape of x, \(2, 5, 3\)",
        ),
        (
            lambda: NATIVE.predictor(X, X.double(), 1.0, 1.0),
            "the dtype of x, float32, but has float64",
        ),
        (
            lambda: NATIVE.predictor_(X, X.double(), 1.0, 1.0),
            "the dtype of x, float32, but has float64",
        ),
        (lambda: NATIVE.langevin(X, X, 1.0, 1.0, 0, -1, 0, 0), "step must be at least 0 .* is -1"),
        (lambda: NATIVE.langevin(X, X, 1.0, 1.0, 0, 0, 65536, 0), "correction must .* is 65536"),
        (
            lambda: NATIVE.langevin_(X, X, 1.0, 1.0, 0, 0, 0, 2**32 - 1),
            "first_sample .* has 2 sample",
        ),
        (
            lambda: NATIVE.philox_normal_(torch.zeros(()), 0, 0, 0, 0),
            r"out must have at least 1 .* \(\)",
        ),
    ],
)
def test_errors(call: Callable[[], object], says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        call()


@pytest.mark.parametrize("name", ["auto", "native", "reference"])
@pytest.mark.parametrize(
    ("stream", "says"),
    [
        ({"seed": 2**64, "step": 0}, "seed must fit in 64 bits"),
        ({"seed": 0, "step": -1}, "step must be at least 0 and below 2\\^32, but is -1"),
        ({"seed": 0, "step": 2**32}, "step must"),
        ({"seed": 0, "step": 0, "correction": 65536}, "correction must"),
        ({"seed": 0, "step": 0, "first_sample": -1}, "first_sample must"),
    ],
)
def test_stream_errors(name: str, stream: dict[str, int], says: str) -> None:
    with ops.backend(name):
        for call in (
            lambda: ops.philox_normal_(torch.zeros(2, 3), **stream),
            lambda: ops.langevin(X, X, 1.0, 1.0, **stream),
            lambda: ops.langevin_(X, X, 1.0, 1.0, **stream),
        ):
            with pytest.raises(ValueError, match=says):
                call()


@pytest.mark.parametrize("name", [*FUNCTIONAL, *IN_PLACE[:2]])
def test_tensors_of_two_devices_are_refused(name: str) -> None:
    first, second, *others = arguments(name)
    elsewhere = second.to("meta")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="must be on the same device"):
        getattr(torch.ops.sda_fast, name)(first, elsewhere, *others)
