"""The native operators of a sampling step against their reference: what is denoised, guided and
stepped, apart and in one pass."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sda_fast import Centre, Junction, _native, ops, reference

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

NATIVE = torch.ops.sda_fast
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STREAM = {"seed": 2**63 + 12345, "step": 7, "correction": 3, "first_sample": 2**20}
NUMBERS = MU, SIGMA = 0.8, 0.6
SHAPES = [(), (0, 3), (2, 0), (1,), (2, 65), (3, 4099), (2, 3, 4, 5, 6)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_detach = pytest.mark.parametrize("detach", [False, True], ids=["through", "detach"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def native(name: str, *args: object, **kwargs: object) -> Any:
    with ops.backend("native"):
        return getattr(ops, name)(*args, **kwargs)


def normal(n: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Draws tensors that lie apart in memory."""
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(n)]


def scattered(x: Tensor) -> Tensor:
    """Returns a copy of a tensor that is not contiguous: every other element, dimensions turned."""
    y = torch.zeros(*reversed(x.shape), 2, dtype=x.dtype)[..., 0]
    y = y.permute(tuple(reversed(range(x.ndim))))
    y.copy_(x)
    return y


def close(result: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compares with numbers in float64, to the rounding of a type; of a half type, to its rounding
    of what is as good as float32's."""
    assert result.dtype == dtype
    atol = 1e-13 if dtype == torch.float64 else 4e-6
    half = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    torch.testing.assert_close(result.double(), expected, rtol=half, atol=atol)


# One operator at a time


@each_dtype
@each_shape
def test_denoise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, eps = normal(2, *shape, dtype=dtype)
    result = native("denoise", x, eps, MU, SIGMA)
    close(result, (x.double() - SIGMA * eps.double()) / MU, dtype)
    close(result, reference.denoise(x.double(), eps.double(), MU, SIGMA), dtype)
    assert torch.equal(native("denoise", scattered(x), scattered(eps), MU, SIGMA), result)


@each_dtype
@each_shape
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_multistep(order: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, *eps = normal(1 + order, *shape, dtype=dtype)
    b = [0.7, -0.5, 0.3, -0.2][:order]
    result = native("multistep", x, eps, 0.9, b)
    close(result, reference.multistep(x.double(), [e.double() for e in eps], 0.9, b), dtype)
    if order == 1:
        assert torch.equal(result, native("predictor", x, *eps, 0.9, *b))

    for work in (x.clone(), scattered(x)):
        native("multistep_", work, [scattered(e) for e in eps], 0.9, b)
        assert torch.equal(work, result)


@each_dtype
@each_shape
@each_detach
def test_guide(detach: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    eps, g, Jg = normal(3, *shape, dtype=dtype)
    through = None if detach else Jg
    result = native("guide", eps, g, through, MU, SIGMA)
    gradient = g.double() if detach else g.double() - SIGMA * Jg.double()
    close(result, eps.double() - SIGMA / MU * gradient, dtype)

    for work in (eps.clone(), scattered(eps)):
        native("guide_", work, scattered(g), None if detach else scattered(Jg), MU, SIGMA)
        assert torch.equal(work, result)


def test_guide_is_the_posterior_s_score() -> None:
    """From a vector-Jacobian product as autograd takes it, against autograd of the whole."""
    matrix = torch.randn(5, 5, dtype=torch.float64)
    x, y = (t.requires_grad_() for t in normal(2, 3, 5, dtype=torch.float64))

    def log_likelihood(denoised: Tensor) -> Tensor:
        return -(y.detach() - denoised).square().sum()

    eps = torch.tanh(x @ matrix)
    log_p = log_likelihood(reference.denoise(x, eps, MU, SIGMA))
    (gradient,) = torch.autograd.grad(log_p, x, retain_graph=True)

    denoised = native("denoise", x.detach(), eps.detach(), MU, SIGMA).requires_grad_()
    (direct,) = torch.autograd.grad(log_likelihood(denoised), denoised)
    (through,) = torch.autograd.grad(eps, x, direct)
    guided = native("guide", eps.detach(), direct, through, MU, SIGMA)
    torch.testing.assert_close(guided, eps.detach() - SIGMA * gradient)


@each_dtype
@pytest.mark.parametrize("rule", [Centre(2), Junction(5, 2)], ids=["centre", "junction"])
@pytest.mark.parametrize("event", [(3,), (2, 4), (2, 3, 4), (700,)], ids=str)
def test_compose_denoise(event: tuple[int, ...], rule: Any, dtype: torch.dtype) -> None:
    for batch, states in ((0, 5), (1, 5), (3, 67)):
        plan = rule.plan(states)
        (windows,) = normal(1, batch, len(plan), plan.window * event[0], *event[1:], dtype=dtype)
        (x,) = normal(1, batch, states, *event, dtype=dtype)
        args = (plan.start, plan.weight)
        eps, denoised = native("compose_denoise", windows, *args, x, MU, SIGMA)
        assert eps.shape == denoised.shape == x.shape
        assert torch.equal(eps, native("compose", windows, *args, states))
        assert torch.equal(denoised, native("denoise", x, eps, MU, SIGMA))
        expected = reference.compose_denoise(windows.double(), *args, x.double(), MU, SIGMA)
        close(eps, expected[0], dtype)
        close(denoised, reference.denoise(x.double(), eps.double(), MU, SIGMA), dtype)

        again = native("compose_denoise", scattered(windows), *args, scattered(x), MU, SIGMA)
        assert torch.equal(torch.stack(again), torch.stack([eps, denoised]))


def test_no_windows() -> None:
    start, weight = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int8)
    x = torch.randn(2, 5, 4)
    eps, denoised = native("compose_denoise", torch.zeros(2, 0, 12), start, weight, x, 0.5, SIGMA)
    assert torch.equal(eps, torch.zeros_like(x))
    assert torch.equal(denoised, 2 * x)


# In one pass: the bits are those of one operator after the other


@each_dtype
@each_shape
@each_detach
@pytest.mark.parametrize("order", [1, 2, 3])
def test_guide_predictor(
    order: int, detach: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, eps, g, Jg, *past = normal(3 + order, *shape, dtype=dtype)
    through, (b, *past_b) = None if detach else Jg, [0.7, -0.5, 0.3][:order]
    guided = native("guide", eps, g, through, MU, SIGMA)
    stepped = native("multistep", x, [guided, *past], 0.9, [b, *past_b])
    rest = (g, through, MU, SIGMA, 0.9, b, past, past_b)

    for copy in (torch.clone, scattered):
        works = [copy(x), copy(eps)]
        native("guide_predictor_", *works, *rest)
        assert torch.equal(works[1], guided)
        assert torch.equal(works[0], stepped)

    if dtype in (torch.float32, torch.float64):  # the half types round on the way
        works = [x.double(), eps.double()]
        wide = [t if t is None else t.double() for t in (g, through)]
        past = [e.double() for e in past]
        reference.guide_predictor_(*works, *wide, MU, SIGMA, 0.9, b, past, past_b)
        close(stepped, works[0], dtype)


@each_dtype
@pytest.mark.parametrize("shape", [*SHAPES[1:], (2, 3, 4096), (2, 12289)], ids=str)
@each_detach
def test_guide_langevin(detach: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, eps, g, Jg = normal(4, *shape, dtype=dtype)
    through = None if detach else Jg
    guided = native("guide", eps, g, through, MU, SIGMA)
    corrected = native("langevin", x, guided, SIGMA, 0.5, **STREAM)

    for copy in (torch.clone, scattered):
        works = [copy(x), copy(eps)]
        native("guide_langevin_", *works, g, through, MU, SIGMA, 0.5, **STREAM)
        assert torch.equal(works[1], guided)
        assert torch.equal(works[0], corrected)

    if x.numel() > 0 and dtype == torch.float64:
        wide = [t if t is None else t.reshape(len(t), -1).clone() for t in (x, eps, g, through)]
        reference.guide_langevin_(*wide, MU, SIGMA, 0.5, **STREAM)
        torch.testing.assert_close(corrected, wide[0].reshape(shape), rtol=1e-12, atol=1e-12)


def test_arguments_that_are_one_tensor_or_neighbours() -> None:
    """What is only read is read as it was before, wherever it lies."""
    for size in (9, 9000):
        x, eps = normal(2, size)

        expected = native("multistep", x, [x, eps, x], 0.9, [0.2, 0.3, 0.4])
        work = x.clone()
        native("multistep_", work, [work, eps, work], 0.9, [0.2, 0.3, 0.4])
        assert torch.equal(work, expected)

        buffer = torch.randn(size + 2)
        expected = native("multistep", buffer[1:-1], [buffer[:-2], buffer[2:]], 0.9, [0.2, 0.3])
        native("multistep_", buffer[1:-1], [buffer[:-2], buffer[2:]], 0.9, [0.2, 0.3])
        assert torch.equal(buffer[1:-1], expected)

        # eps is also the gradient and the past, x the product with the Jacobian
        guided = native("guide", eps, eps, x, MU, SIGMA)
        stepped = native("multistep", x, [guided, eps, x], 0.9, [0.2, 0.3, 0.4])
        works = [x.clone(), eps.clone()]
        past = [works[1], works[0]]
        native(
            "guide_predictor_", *works, works[1], works[0], MU, SIGMA, 0.9, 0.2, past, [0.3, 0.4]
        )
        assert torch.equal(works[1], guided)
        assert torch.equal(works[0], stepped)

        # neighbours of both
        buffer = torch.randn(2 * size + 3)
        works = [buffer[1 : size + 1], buffer[size + 2 : 2 * size + 2]]
        others = [buffer[:size], buffer[size + 3 :], buffer[size + 1 : 2 * size + 1]]
        copies = [t.clone() for t in (*works, *others)]
        guided = native("guide", copies[1], copies[2], copies[3], MU, SIGMA)
        stepped = native("multistep", copies[0], [guided, copies[4]], 0.9, [0.2, 0.3])
        native("guide_predictor_", *works, *others[:2], MU, SIGMA, 0.9, 0.2, others[2:], [0.3])
        assert torch.equal(works[1], guided)
        assert torch.equal(works[0], stepped)

        guided = native("guide", eps, x, eps, MU, SIGMA)
        corrected = native("langevin", x[None], guided[None], SIGMA, 0.5, **STREAM)
        works = [x.clone()[None], eps.clone()[None]]
        native("guide_langevin_", *works, works[0], works[1], MU, SIGMA, 0.5, **STREAM)
        assert torch.equal(works[1][0], guided)
        assert torch.equal(works[0], corrected)


@each_dtype
def test_results_do_not_depend_on_the_threads(
    dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    x, eps, g, Jg, past = normal(5, 3, 100003, dtype=dtype)
    plan = Junction(9, 4).plan(4097)
    (windows,) = normal(1, 2, len(plan), 9 * 11, dtype=dtype)
    (trajectory,) = normal(1, 2, 4097, 11, dtype=dtype)
    results = []
    for number in (1, 2, 3):
        threads(number)
        steps, corrections = ([x.clone(), eps.clone()] for _ in range(2))
        native("guide_predictor_", *steps, g, Jg, MU, SIGMA, 0.9, 0.1, [past], [0.2])
        native("guide_langevin_", *corrections, g, None, MU, SIGMA, 0.5, **STREAM)
        results.append(
            [
                *native("compose_denoise", windows, plan.start, plan.weight, trajectory, MU, SIGMA),
                native("denoise", x, eps, MU, SIGMA),
                native("multistep", x, [eps, g, Jg], 0.9, [0.1, 0.2, 0.3]),
                native("guide", eps, g, Jg, MU, SIGMA),
                *steps,
                *corrections,
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


ISA = """
import sys, torch
from sda_fast import Junction, _native, ops, reference
if not _native.available:
    print(_native.reason)
    sys.exit(77)
assert _native.info()["isa"] == sys.argv[1]
torch.manual_seed(0)
plan = Junction(5, 2).plan(11)
mu, sigma, stream = 0.8, 0.6, dict(seed=5, step=6, correction=7)

def run(module, x, eps, g, Jg, past, windows):
    steps, corrections = ([x.clone(), eps.clone()] for _ in range(2))
    module.guide_predictor_(*steps, g, Jg, mu, sigma, 0.9, 0.1, [past], [0.2])
    module.guide_langevin_(*corrections, g, None, mu, sigma, 0.5, **stream)
    return [*module.compose_denoise(windows, plan.start, plan.weight, x, mu, sigma),
            module.denoise(x, eps, mu, sigma), module.guide(eps, g, Jg, mu, sigma),
            module.multistep(x, [eps, g, Jg, past], 0.9, [0.1, 0.2, 0.3, 0.4]),
            *steps, *corrections]

for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    # the half types round eps before it is used
    atol = {8: 1e-13, 4: 4e-6, 2: 10 * torch.finfo(dtype).eps}[dtype.itemsize]
    tensors = list(torch.randn(5, 3, 11, 37, dtype=torch.float64).to(dtype))
    tensors.append(torch.randn(3, len(plan), 5 * 37, dtype=torch.float64).to(dtype))
    with ops.backend("native"):
        results = run(ops, *tensors)
    for a, b in zip(results, run(reference, *(t.double() for t in tensors))):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=atol)
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
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


def arguments(name: str) -> list[Any]:
    x, eps, g, Jg = normal(4, 2, 5, 2, dtype=torch.float64)
    plan = Junction(3, 1).plan(5)
    (windows,) = normal(1, 2, len(plan), 6, dtype=torch.float64)
    return {
        "denoise": [x, eps, MU, SIGMA],
        "compose_denoise": [windows, plan.start, plan.weight, x, MU, SIGMA],
        "multistep": [x, [eps, g, Jg], 0.9, [0.1, 0.2, 0.3]],
        "multistep_": [x, [eps, g, Jg], 0.9, [0.1, 0.2, 0.3]],
        "guide": [eps, g, Jg, MU, SIGMA],
        "guide detached": [eps, g, None, MU, SIGMA],
        "guide_": [eps, g, Jg, MU, SIGMA],
        "guide_predictor_": [x, eps, g, None, MU, SIGMA, 0.9, 0.1, [Jg], [0.2]],
        "guide_langevin_": [x, eps, g, Jg, MU, SIGMA, 0.5, 1, 2, 3, 4],
    }[name]


FUNCTIONAL = ["denoise", "compose_denoise", "multistep", "guide", "guide detached"]
IN_PLACE = ["multistep_", "guide_", "guide_predictor_", "guide_langevin_"]


def operator(name: str) -> Any:
    return getattr(NATIVE, name.split()[0])


def floating(args: list[Any]) -> list[Tensor]:
    """Lists the floating-point tensors among arguments, in lists too."""
    flat = [t for a in args for t in (a if isinstance(a, list) else [a])]
    return [t for t in flat if isinstance(t, Tensor) and t.is_floating_point()]


@pytest.mark.parametrize("name", FUNCTIONAL + IN_PLACE)
def test_opcheck(name: str) -> None:
    args = arguments(name)
    if name in FUNCTIONAL:
        for tensor in floating(args):
            tensor.requires_grad_()
    torch.library.opcheck(operator(name), tuple(args))


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_gradients(name: str) -> None:
    args = arguments(name)
    inputs = [t.requires_grad_() for t in floating(args)]

    def f(*tensors: Tensor) -> Any:
        given = iter(tensors)

        def fill(a: Any) -> Any:
            if isinstance(a, list):
                return [fill(t) for t in a]
            return next(given) if isinstance(a, Tensor) and a.is_floating_point() else a

        return operator(name)(*map(fill, args))

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_gradient_of_one_of_two_results() -> None:
    windows, start, weight, x, *levels = arguments("compose_denoise")
    for which, expected in ((0, 0.0), (1, 1 / MU)):
        x = x.detach().requires_grad_()
        native("compose_denoise", windows, start, weight, x, *levels)[which].sum().backward()
        torch.testing.assert_close(x.grad, torch.full_like(x, expected))


def test_gradient_of_a_list() -> None:
    """Also where only a tensor in the list asks for it."""
    x, eps = normal(2, 3, 4)
    eps.requires_grad_()
    native("multistep", x, [x, eps], 0.9, [0.1, 0.25]).sum().backward()
    assert torch.equal(eps.grad, torch.full_like(eps, 0.25))


def in_place(name: str, *tensors: Tensor) -> None:
    """Calls an operator in place on the first, or on the first two."""
    x, eps, g, Jg = tensors
    if name == "multistep_":
        ops.multistep_(x, [eps, g, Jg], 0.9, [0.1, 0.2, 0.3])
    elif name == "guide_":
        ops.guide_(x, g, Jg, MU, SIGMA)
    elif name == "guide_predictor_":
        ops.guide_predictor_(x, eps, g, None, MU, SIGMA, 0.9, 0.1, [Jg], [0.2])
    else:
        ops.guide_langevin_(x, eps, g, Jg, MU, SIGMA, 0.5, seed=1, step=2)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_with_gradients_uses_the_reference(name: str) -> None:
    tensors = normal(4, 2, 5, dtype=torch.float64)
    expected = [t.clone() for t in tensors]
    with ops.backend("native"):
        in_place(name, *expected)

    tensors[3].requires_grad_()
    with ops.backend("native"), pytest.raises(RuntimeError, match="keep no gradients"):
        in_place(name, *tensors)
    in_place(name, *tensors)
    torch.testing.assert_close(tensors[:2], expected[:2], rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(tensors[0].sum(), tensors[3])
    assert grad.abs().sum() > 0


def test_compiled() -> None:
    plan = Junction(5, 2).plan(9)

    def f(windows: Tensor, x: Tensor, g: Tensor) -> Tensor:
        eps, denoised = ops.compose_denoise(windows, plan.start, plan.weight, x, MU, SIGMA)
        y = ops.multistep(ops.denoise(x, denoised, MU, SIGMA), [eps, g, x], 0.9, [0.1, 0.2, 0.3])
        return ops.guide(ops.guide(eps, g, None, MU, SIGMA), y, g, MU, SIGMA)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    tensors = [*normal(1, 3, len(plan), 20), *normal(2, 3, 9, 4)]
    for tensor in tensors:
        tensor.requires_grad_()
    assert torch.equal(compiled(*tensors), f(*tensors))
    for a, b in zip(*(torch.autograd.grad(g(*tensors).square().sum(), tensors)
                      for g in (compiled, f)), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


def test_compiled_in_place() -> None:
    def f(x: Tensor, eps: Tensor, g: Tensor, Jg: Tensor) -> tuple[Tensor, Tensor]:
        x, eps = x + 1, eps + 1
        past = eps.clone()
        ops.guide_predictor_(x, eps, g, Jg, MU, SIGMA, 0.9, 0.1, [past], [0.2])
        ops.guide_langevin_(x, eps, g, None, MU, SIGMA, 0.5, seed=1, step=2)
        ops.guide_(eps, g, Jg, MU, SIGMA)
        ops.multistep_(x, [eps, past], 0.9, [0.1, 0.2])
        return x, eps

    tensors = normal(4, 3, 9)
    expected = f(*tensors)
    results = torch.compile(f, fullgraph=True, backend="aot_eager")(*tensors)
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)


def test_transformations_use_the_reference() -> None:
    x, *eps = normal(3, 4, 5)
    stepped = torch.func.vmap(lambda x, a, b: ops.multistep(x, [a, b], 0.9, [0.1, 0.2]))(x, *eps)
    torch.testing.assert_close(stepped, ops.multistep(x, eps, 0.9, [0.1, 0.2]))


@pytest.mark.parametrize("batch_dims", [0, 2])
def test_batches_of_any_dimension(batch_dims: int) -> None:
    batch = (2, 3)[:batch_dims]
    x, eps, g, Jg = normal(4, *batch, 5, 4)
    plan = Junction(3, 1).plan(5)
    (windows,) = normal(1, *batch, len(plan), 12)
    args = (plan.start, plan.weight)

    def joined(t: Tensor) -> Tensor:
        return t.reshape(-1, *t.shape[batch_dims:])

    results = native("compose_denoise", windows, *args, x, *NUMBERS, batch_dims=batch_dims)
    expected = native("compose_denoise", joined(windows), *args, joined(x), *NUMBERS)
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b.view_as(x))

    expected = [joined(x).clone(), joined(eps).clone()]
    native("guide_langevin_", *expected, joined(g), joined(Jg), *NUMBERS, 0.5, **STREAM)
    for copy in (torch.clone, scattered):
        works = [copy(x), copy(eps)]
        native("guide_langevin_", *works, g, Jg, *NUMBERS, 0.5, **STREAM, batch_dims=batch_dims)
        for a, b in zip(works, expected, strict=True):
            assert torch.equal(a, b.view_as(x))

    with pytest.raises(RuntimeError, match="direct must have the shape of x"):
        native("guide_langevin_", x, eps, g[..., :1], None, *NUMBERS, 0.5, **STREAM, batch_dims=2)
    if batch_dims == 2:
        windows = windows.transpose(0, 1)
        with pytest.raises(RuntimeError, match=r"windows must have the batch of x, \(2, 3\)"):
            native("compose_denoise", windows, *args, x, *NUMBERS, batch_dims=2)


@each_dtype
def test_dense_layouts(dtype: torch.dtype) -> None:
    """Memory is walked in the first tensor's order, and results lie in that order too."""
    x, eps, g, Jg = (t.transpose(1, 3) for t in normal(4, 2, 3, 5, 7, dtype=dtype))
    for name, *args in (
        ("denoise", x, eps, *NUMBERS),
        ("multistep", x, [eps.contiguous(), g], 0.9, [0.1, 0.2]),
        ("guide", x, eps.contiguous(), g, *NUMBERS),
    ):
        result = native(name, *args)
        assert result.stride() == x.stride()
        again = [[t.contiguous() for t in a] if name == "multistep" and i == 1 else a
                 for i, a in enumerate(args)]  # fmt: skip
        assert torch.equal(native(name, x.contiguous(), *again[1:]), result)

    rest = (g, Jg.contiguous(), *NUMBERS, 0.9, 0.1, [g], [0.2])
    expected = [x.contiguous(), eps.contiguous()]
    native("guide_predictor_", *expected, *rest)
    for works in ([x.clone(), eps.clone()], [x.clone(), eps.contiguous()]):
        native("guide_predictor_", *works, *rest)
        assert all(torch.equal(a, b) for a, b in zip(works, expected, strict=True))


# Backends and errors


def test_backend() -> None:
    x, eps = normal(2, 100)
    with ops.backend("reference"):
        assert torch.equal(ops.denoise(x, eps, MU, SIGMA), reference.denoise(x, eps, MU, SIGMA))
        assert torch.equal(
            ops.guide(x, eps, None, MU, SIGMA), reference.guide(x, eps, None, MU, SIGMA)
        )


X, LONG = torch.zeros(2, 5), torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: NATIVE.denoise(X, LONG, *NUMBERS), r"eps must have the shape of x, \(2, 5\)"),
        (lambda: NATIVE.denoise(X.int(), X, *NUMBERS), "x must be float32, .* but is int32"),
        (lambda: NATIVE.denoise(X, X, 0.0, 1.0), "mu must be above 0, but is 0"),
        (lambda: NATIVE.denoise(X, X, float("nan"), 1.0), "mu must be above 0, but is nan"),
        (lambda: NATIVE.multistep(X, [], 1.0, []), "eps must have 1 to 4 tensors, but has 0"),
        (lambda: NATIVE.multistep(X, [X] * 5, 1.0, [1.0] * 5), "1 to 4 tensors, but has 5"),
        (
            lambda: NATIVE.multistep(X, [X, X], 1.0, [1.0]),
            "b must have as many numbers as eps has tensors, 2, but has 1",
        ),
        (
            lambda: NATIVE.multistep_(X, [X, X.double()], 1.0, [1.0, 1.0]),
            r"eps\[1\] must have the dtype of x, float32, but has float64",
        ),
        (lambda: NATIVE.guide(X, LONG, None, *NUMBERS), "direct must have the shape of eps"),
        (lambda: NATIVE.guide(X, X, LONG, *NUMBERS), "through must have the shape of eps"),
        (lambda: NATIVE.guide_(X, X, X, -1.0, 1.0), "mu must be above 0, but is -1"),
        (
            lambda: NATIVE.guide_(X[:1].expand(2, 5), X, X, *NUMBERS),
            r"eps of shape \(2, 5\) must have memory of its own",
        ),
        (
            lambda: NATIVE.guide_predictor_(X, X, X, None, *NUMBERS, 1.0, 1.0, [], []),
            "x and eps must not share memory",
        ),
        (
            lambda: NATIVE.guide_predictor_(
                X, X.clone(), X, None, *NUMBERS, 1.0, 1.0, [X] * 3, [1.0] * 3
            ),
            "past must have 0 to 2 tensors, but has 3",
        ),
        (
            lambda: NATIVE.guide_predictor_(X, X.clone(), X, None, *NUMBERS, 1.0, 1.0, [X], []),
            "past_b must have as many numbers as past has tensors, 1, but has 0",
        ),
        (
            lambda: NATIVE.guide_predictor_(
                X, X.clone(), X, None, *NUMBERS, 1.0, 1.0, [LONG], [1.0]
            ),
            r"past\[0\] must have the shape of x",
        ),
        (
            lambda: NATIVE.guide_langevin_(X, LONG, X, None, *NUMBERS, 1.0, 0, 0, 0, 0),
            "eps must have the shape of x",
        ),
        (
            lambda: NATIVE.guide_langevin_(X, X.clone(), X, X, *NUMBERS, 1.0, 0, -1, 0, 0),
            "step must be at least 0 .* is -1",
        ),
    ],
)
def test_errors(call: Callable[[], object], says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        call()


def test_compose_denoise_errors() -> None:
    plan = Junction(3, 1).plan(5)
    windows, x = torch.zeros(2, len(plan), 6), torch.zeros(2, 5, 2)

    def call(windows: Tensor, x: Tensor, mu: float = MU) -> None:
        NATIVE.compose_denoise(windows, plan.start, plan.weight, x, mu, SIGMA)

    for wrong in (x[:1], x[..., :1], x[..., None], torch.zeros(2, 5, 2, 1)):
        with pytest.raises(RuntimeError, match=r"x must have the shape \(B, L, C, \*\) of"):
            call(windows, wrong)
    with pytest.raises(RuntimeError, match="x must have the dtype of windows, float32"):
        call(windows, x.double())
    with pytest.raises(RuntimeError, match=r"the trajectory's 4 state\(s\)"):
        call(windows, x[:, :4])
    with pytest.raises(RuntimeError, match="mu must be above 0"):
        call(windows, x, 0.0)


def test_stream_errors() -> None:
    for name in ("auto", "reference"):
        with ops.backend(name), pytest.raises(ValueError, match="correction must"):
            ops.guide_langevin_(X, LONG, X, X, *NUMBERS, 1.0, seed=0, step=0, correction=65536)


@pytest.mark.parametrize("name", FUNCTIONAL + IN_PLACE)
def test_tensors_of_two_devices_are_refused(name: str) -> None:
    args = arguments(name)
    last = max(i for i, a in enumerate(args) if floating([a]))
    args[last] = (
        [t.to("meta") for t in args[last]]
        if isinstance(args[last], list)
        else args[last].to("meta")
    )
    with pytest.raises(RuntimeError, match="must be on the same device"):
        operator(name)(*args)
