"""Times every operator, native against the pure-PyTorch reference.

    pytest benchmarks --benchmark-only --benchmark-group-by=group

Both sides of a group run in one process, on the same tensors, after their results were compared.
"""

from collections.abc import Callable

import pytest
import torch

from sda_fast import Centre, Junction, ops
from sda_fast.observation import BlockMean, Interpolate, ObservationOperator, Subsample, Vorticity

SIZES = {"small": (1, 65, 3), "medium": (128, 65, 3), "large": (128, 1024, 64)}
BACKENDS = ("native", "reference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


def title(operator: str, size: str, dtype: torch.dtype) -> str:
    return f"{operator} {size} {str(dtype)[6:]} ({torch.get_num_threads()} threads)"


def compare(benchmark, group: str, backend: str, run: Callable[[], object]) -> None:
    """Checks that both backends agree, then times one of them."""
    with torch.no_grad():
        with ops.backend("reference"):
            expected = run()
        with ops.backend(backend):
            result = run()
            rtol = max(1e-4, torch.finfo(result.dtype).eps)
            torch.testing.assert_close(result, expected, rtol=rtol, atol=1e-5)
            benchmark.group = group
            benchmark(run)


@pytest.mark.parametrize("rule", [Centre(2), Junction(9, 4)], ids=["centre", "junction"])
def test_gather(benchmark, backend: str, size: str, dtype: torch.dtype, rule):
    x = torch.randn(SIZES[size], dtype=dtype)
    plan = rule.plan(x.shape[1])
    group = title(f"gather {type(rule).__name__}", size, dtype)

    compare(benchmark, group, backend, lambda: ops.gather(x, plan.start, plan.mask))


@pytest.mark.parametrize("rule", [Centre(2), Junction(9, 4)], ids=["centre", "junction"])
def test_compose(benchmark, backend: str, size: str, dtype: torch.dtype, rule):
    batch, length, features = SIZES[size]
    plan = rule.plan(length)
    windows = torch.randn(batch, len(plan), plan.window * features, dtype=dtype)
    group = title(f"compose {type(rule).__name__}", size, dtype)

    compare(
        benchmark, group, backend, lambda: ops.compose(windows, plan.start, plan.weight, length)
    )


def test_predictor(benchmark, backend: str, size: str, dtype: torch.dtype):
    x, eps = torch.randn(2, *SIZES[size], dtype=dtype)
    group = title("predictor", size, dtype)

    compare(benchmark, group, backend, lambda: ops.predictor(x, eps, 1.01, -0.02))


@pytest.mark.parametrize("rule", [Centre(2), Junction(9, 4)], ids=["centre", "junction"])
def test_compose_denoise(benchmark, backend: str, size: str, rule):
    x = torch.randn(SIZES[size])
    plan = rule.plan(x.shape[1])
    windows = torch.randn(len(x), len(plan), plan.window * x.shape[2])
    group = f"compose_denoise {type(rule).__name__} {size}"

    compare(
        *(benchmark, group, backend),
        lambda: ops.compose_denoise(windows, plan.start, plan.weight, x, 0.8, 0.6),
    )


def test_denoise(benchmark, backend: str, size: str):
    x, eps = torch.randn(2, *SIZES[size])

    compare(benchmark, f"denoise {size}", backend, lambda: ops.denoise(x, eps, 0.8, 0.6))


def test_multistep(benchmark, backend: str, size: str):
    x, *eps = (torch.randn(SIZES[size]) for _ in range(4))
    b = [-0.03, 0.02, -0.01]

    compare(benchmark, f"multistep {size}", backend, lambda: ops.multistep(x, eps, 1.01, b))


def test_guide(benchmark, backend: str, size: str):
    eps, direct, through = (torch.randn(SIZES[size]) for _ in range(3))

    compare(
        *(benchmark, f"guide {size}", backend), lambda: ops.guide(eps, direct, through, 0.8, 0.6)
    )


def test_guide_predictor(benchmark, backend: str, size: str):
    x, eps, direct, through, past = (torch.randn(SIZES[size]) for _ in range(5))
    rest = (direct, through, 0.8, 0.01, 1.0, -0.02, [past], [0.01])

    def run() -> list[torch.Tensor]:
        works = [x.clone(), eps.clone()]
        ops.guide_predictor_(*works, *rest)
        return works

    with torch.no_grad():
        with ops.backend("reference"):
            expected = run()
        with ops.backend(backend):
            torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-5)
            benchmark.group = f"guide_predictor_ {size} ({torch.get_num_threads()} threads)"
            benchmark(lambda: ops.guide_predictor_(x, eps, *rest))


FLOW = (9, 2, 64, 64)
OPERATORS = {
    "subsample": lambda: Subsample(FLOW, slice(None, None, 2), slice(None), slice(None, None, 4)),
    "subsample columns": lambda: Subsample(FLOW, slice(9), slice(2), slice(64), slice(0, 64, 4)),
    "block_mean": lambda: BlockMean(FLOW, (4, 4)),
    "sparse_map": lambda: Interpolate(FLOW, 63 * torch.rand(500, 2)),
    "sparse_map of vorticity": lambda: Vorticity(FLOW),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("way", ["forward", "adjoint"])
def test_observation(benchmark, backend: str, way: str, name: str):
    A: ObservationOperator = OPERATORS[name]()
    x, y = torch.randn(16, *A.event), torch.randn(16, *A.shape)

    compare(
        benchmark,
        f"{name} {way}",
        backend,
        lambda: A(x) if way == "forward" else A.vjp(x, y),
    )


def test_vorticity_rolled(benchmark):
    """The other way to observe vorticity: rolled copies of the field."""
    x = torch.randn(16, *FLOW)
    A = Vorticity(FLOW, 0.1)

    def rolled() -> torch.Tensor:
        u, v = x.unbind(dim=2)
        return (v.roll(-1, 2) - v.roll(1, 2) - u.roll(-1, 3) + u.roll(1, 3)) / 0.2

    torch.testing.assert_close(rolled(), A(x), rtol=1e-4, atol=1e-4)
    benchmark.group = f"sparse_map of vorticity forward ({torch.get_num_threads()} threads)"
    benchmark(rolled)


def test_residual(benchmark, backend: str, size: str):
    prediction = torch.randn(SIZES[size])
    y = torch.randn(prediction.shape[1:])
    std, gamma = torch.rand_like(y) + 0.1, torch.tensor(1e-2)

    compare(
        benchmark,
        f"residual {size}",
        backend,
        lambda: ops.residual(y, prediction, std, gamma, 0.5),
    )


# The reference of what draws noise is an oracle, far slower than what one would use: the other side
# is eager PyTorch with torch's own generator.


@pytest.mark.parametrize("source", ["native", "torch"])
def test_langevin(benchmark, source: str, size: str, dtype: torch.dtype):
    x, eps = torch.randn(2, *SIZES[size], dtype=dtype)
    benchmark.group = title("langevin", size, dtype)

    def eager() -> torch.Tensor:
        z = torch.randn_like(x)
        delta = 0.25 / eps.square().mean(dim=(1, 2), keepdim=True)
        return x - 0.5 * (delta * eps + torch.sqrt(2 * delta) * z)

    def native() -> torch.Tensor:
        return ops.langevin(x, eps, 0.5, 0.25, seed=1, step=2)

    with torch.no_grad(), ops.backend("native"):
        benchmark(native if source == "native" else eager)


@pytest.mark.parametrize("source", ["native", "torch"])
def test_guide_langevin(benchmark, source: str, size: str):
    x, eps, direct, through = (torch.randn(SIZES[size]) for _ in range(4))
    benchmark.group = f"guide_langevin_ {size} ({torch.get_num_threads()} threads)"

    def eager() -> None:
        eps.copy_(eps - 0.01 / 0.8 * (direct - 0.01 * through))
        delta = 0.25 / eps.square().mean(dim=(1, 2), keepdim=True)
        x.copy_(x - 0.01 * (delta * eps + torch.sqrt(2 * delta) * torch.randn_like(x)))

    def native() -> None:
        ops.guide_langevin_(x, eps, direct, through, 0.8, 0.01, 0.25, seed=1, step=2)

    with torch.no_grad(), ops.backend("native"):
        benchmark(native if source == "native" else eager)


@pytest.mark.parametrize("source", ["native", "torch"])
def test_noise(benchmark, source: str, size: str, dtype: torch.dtype):
    x = torch.empty(SIZES[size], dtype=dtype)
    benchmark.group = title("noise", size, dtype)

    with ops.backend("native"):
        benchmark(x.normal_ if source == "torch" else lambda: ops.philox_normal_(x, seed=1, step=2))
