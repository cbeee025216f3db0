"""Noise processes against the formulas, and the coefficients of the way back."""

import math
from itertools import product
from types import SimpleNamespace

import oracles
import pytest
import torch
from torch import nn

import sda_fast
from sda_fast import VPSDE, SubSubVPSDE, SubVPSDE
from sda_fast.schedule import adams_bashforth, coefficients

integrate = pytest.importorskip("scipy.integrate")

TIMES = [0.0, 1e-3, 0.1, 0.37, 0.5, 0.9, 1.0]


def process(kind: str = "VPSDE", alpha: str = "cos", shape: tuple[int, ...] = (3,), **kwargs):
    return getattr(sda_fast, kind)(nn.Identity(), shape, alpha=alpha, **kwargs)


@pytest.mark.parametrize("eta", [1e-3, 1e-2])
@pytest.mark.parametrize("alpha", oracles.ALPHAS)
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_formulas(kind: str, alpha: str, eta: float):
    sde = process(kind, alpha, eta=eta)
    t = torch.tensor(TIMES, dtype=torch.float64)
    mu, sigma = zip(*(oracles.levels(kind, alpha, time, eta) for time in TIMES), strict=True)

    torch.testing.assert_close(sde.alpha(t), t.new_tensor(mu), rtol=1e-13, atol=0)
    torch.testing.assert_close(sde.mu(t), t.new_tensor(mu), rtol=1e-13, atol=0)
    torch.testing.assert_close(sde.sigma(t), t.new_tensor(sigma), rtol=1e-11, atol=0)


@pytest.mark.parametrize("alpha", oracles.ALPHAS)
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_from_data_to_noise(kind: str, alpha: str):
    """At t = 0 the state is all but clean, at t = 1 all but noise."""
    sde = process(kind, alpha)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)

    torch.testing.assert_close(sde.mu(t), t.new_tensor([1.0, 1e-3]), rtol=1e-9, atol=0)
    torch.testing.assert_close(sde.sigma(t)[0], t.new_tensor(1e-3), rtol=1e-9, atol=0)
    torch.testing.assert_close(sde.sigma(t)[1], t.new_tensor(1.0), rtol=0, atol=2e-3)


def test_defaults():
    sde = VPSDE(nn.Identity(), (7, 3))
    assert isinstance(SubVPSDE(nn.Identity(), ()), VPSDE)
    assert isinstance(SubSubVPSDE(nn.Identity(), ()), VPSDE)
    assert sde.shape == torch.Size((7, 3))
    assert sde.eta == 1e-3
    t = torch.tensor(0.3)
    assert sde.mu(t) == process(alpha="cos").mu(t)


def test_state_dict():
    """The buffer that the reference package's checkpoints hold, strictly."""
    sde = VPSDE(nn.Linear(2, 2), (2,))
    assert {k: tuple(v.shape) for k, v in sde.state_dict().items()} == {
        "device": (),
        "eps.weight": (2, 2),
        "eps.bias": (2,),
    }
    sde.load_state_dict({k: torch.zeros_like(v) for k, v in sde.state_dict().items()})


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"alpha must be one of lin, cos, exp, got 'sin'"):
        process(alpha="sin")


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 2)])
@pytest.mark.parametrize("batch", [(), (5,), (4, 5)])
def test_perturbation(batch: tuple[int, ...], shape: tuple[int, ...]):
    """x(t) = mu x + sigma eps, with a time for each state of the batch."""
    sde = process(shape=shape)
    x = torch.randn(*batch, *shape, dtype=torch.float64)
    t = torch.rand(batch, dtype=torch.float64)
    noisy, eps = sde(x, t, train=True)

    assert noisy.shape == eps.shape == x.shape
    for i in product(*map(range, batch)):
        mu, sigma = oracles.levels("VPSDE", "cos", float(t[i]))
        torch.testing.assert_close(noisy[i], mu * x[i] + sigma * eps[i], rtol=1e-12, atol=1e-12)

    torch.manual_seed(1)
    alone = sde(x, t)
    torch.manual_seed(1)
    assert torch.equal(alone, sde(x, t, train=True)[0])


@pytest.mark.parametrize("kind", oracles.KINDS)
def test_perturbation_moments(kind: str):
    """The mean is mu x and the variance sigma^2, to 5 standard errors of 2^16 draws."""
    sde = process(kind, shape=(2,))
    n, t = 2**16, 0.4
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    noisy = sde(x.expand(n, 2), torch.full((n,), t))
    mu, sigma = oracles.levels(kind, "cos", t)

    error = (noisy.mean(0) - mu * x).abs()
    assert (error < 5 * sigma / math.sqrt(n)).all()
    error = (noisy.var(0) - sigma**2).abs()
    assert (error < 5 * sigma**2 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_loss(weighted: bool):
    """The loss is the weighted mean of (eps_phi(mu x + sigma eps, t, c) - eps)^2."""

    class Network(nn.Module):
        def forward(self, x, t, c):
            return 0.3 * x + t[:, None] + c

    x, c = torch.randn(6, 4), torch.randn(4)
    w = torch.rand(6, 4) if weighted else None
    sde = VPSDE(Network(), (4,))

    torch.manual_seed(1)
    loss = sde.loss(x, c, w)

    torch.manual_seed(1)
    t = torch.rand(6)
    eps = torch.randn(6, 4)
    total, weight = 0.0, 0.0
    for i in range(6):
        mu, sigma = oracles.levels("VPSDE", "cos", float(t[i]))
        for j in range(4):
            noisy = mu * x[i, j] + sigma * eps[i, j]
            estimate = 0.3 * noisy + t[i] + c[j]
            factor = 1.0 if w is None else float(w[i, j])
            total += factor * float(estimate - eps[i, j]) ** 2
            weight += factor

    assert loss.shape == ()
    assert float(loss) == pytest.approx(total / weight, rel=1e-5)


def test_loss_trains():
    """The loss of a linear network falls below that of knowing nothing, which is 1."""
    network = nn.Linear(3, 3)
    sde = VPSDE(lambda x, t, c: network(x), (3,))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    data = 0.1 * torch.randn(512, 3)

    for _ in range(150):
        optimizer.zero_grad()
        sde.loss(data).backward()
        optimizer.step()

    assert sde.loss(data).item() < 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", oracles.KINDS)
def test_coefficients_are_computed_in_float64(kind: str, dtype: torch.dtype):
    sde = process(kind).to(dtype)
    mu, sigma = coefficients(sde, torch.tensor(TIMES, dtype=torch.float64))

    assert mu.dtype == sigma.dtype == torch.float64
    for n, t in enumerate(TIMES):
        expected = oracles.levels(kind, "cos", t)
        assert (float(mu[n]), float(sigma[n])) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("alpha", ["cos", "exp"])
def test_adams_bashforth_integrates_polynomials(alpha: str, order: int):
    """The weights integrate t^p over sigma / mu exactly for p below the order."""
    sde = process(alpha=alpha)
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    weights = adams_bashforth(sde, times, order)

    assert weights.shape == (8, order)
    torch.testing.assert_close(weights.sum(1), torch.ones(8, dtype=torch.float64))
    assert torch.equal(weights[0], torch.eye(order, dtype=torch.float64)[0])

    def ratio(t: float) -> float:
        mu, sigma = oracles.levels("VPSDE", alpha, t)
        return sigma / mu

    def slope(t: float, h: float = 1e-6) -> float:
        low, high = max(t - h, 0), min(t + h, 1)
        return (ratio(high) - ratio(low)) / (high - low)

    for n in (order - 1, 5):
        for p in range(order):
            integral, _ = integrate.quad(lambda t, p=p: t**p * slope(t), times[n], times[n + 1])
            integral /= ratio(float(times[n + 1])) - ratio(float(times[n]))
            estimate = sum(float(weights[n, j] * times[n - j] ** p) for j in range(order))
            assert estimate == pytest.approx(integral, rel=1e-4)


@pytest.mark.parametrize(
    "mu",
    [
        lambda t: 1 - 0.9 * t if t < 0.5 else 0.55 - 0.9 * (t - 0.5),
        lambda t: 1 - 0.9 * float(t),
        lambda t: (1 - 0.9 * t).reshape(1, 1, 1),
    ],
    ids=["branch", "number", "shape"],
)
def test_coefficients_of_a_level_of_one_time(mu):
    process = SimpleNamespace(mu=mu, sigma=lambda t: torch.ones(()))
    times = torch.linspace(1, 0, 5, dtype=torch.float64)
    levels, ones = coefficients(process, times)
    torch.testing.assert_close(levels, 1 - 0.9 * times)
    assert torch.equal(ones, torch.ones_like(times))


def test_coefficients_say_what_a_level_says():
    def mu(t):
        raise KeyError("no such level")

    with pytest.raises(KeyError, match="no such level"):
        coefficients(SimpleNamespace(mu=mu, sigma=mu), torch.linspace(1, 0, 5))


def test_multistep_over_a_level_that_rests():
    """Where the ratio of the levels ends as it began, no estimate moves the state."""
    process = SimpleNamespace(mu=torch.ones_like, sigma=lambda t: t.clamp(min=0.5))
    weights = adams_bashforth(process, torch.linspace(1, 0, 9), 3)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(8, dtype=torch.float64))
