"""Dynamical systems: their laws, their invariants and the order of their integration."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor

from sda_fast import (
    DampedSpring,
    DiscreteODE,
    Lorenz63,
    Lorenz96,
    LotkaVolterra,
    MarkovChain,
    NoisyLorenz63,
)
from sda_fast.evaluation import LinearGaussianChain

SYSTEMS: dict[str, tuple[MarkovChain, int]] = {
    "spring": (DampedSpring(), 4),
    "lorenz63": (Lorenz63(dt=0.025), 3),
    "noisy lorenz63": (NoisyLorenz63(dt=0.025), 3),
    "lorenz96": (Lorenz96(n=12), 12),
    "lotka-volterra": (LotkaVolterra(), 2),
}
ODES = {"lorenz63": Lorenz63, "lorenz96": Lorenz96, "lotka-volterra": LotkaVolterra}


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_shapes(name: str, shape: tuple[int, ...]):
    chain, size = SYSTEMS[name]
    x = chain.prior(shape)
    assert isinstance(chain, MarkovChain)
    assert x.shape == (*shape, size)
    assert chain.transition(x).shape == x.shape
    assert chain.trajectory(x, 4).shape == (4, *shape, size)
    assert chain.trajectory(x, 4, last=True).shape == x.shape
    assert chain.trajectory(x, 0).shape == (0, *shape, size)
    assert torch.equal(chain.trajectory(x, 0, last=True), x)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_trajectory_is_its_transitions(name: str):
    """The states that follow, not the first."""
    chain, _ = SYSTEMS[name]
    x = chain.prior((2,), generator=generator())
    trajectory = chain.trajectory(x, 3, generator=generator(1))
    last = chain.trajectory(x, 3, last=True, generator=generator(1))
    source = generator(1)
    for state in trajectory:
        x = chain.transition(x, generator=source)
        assert torch.equal(state, x)
    assert torch.equal(last, x)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_randomness_is_the_generators(name: str):
    """The same generator, the same numbers; torch's own by default."""
    chain, _ = SYSTEMS[name]

    def draw(source: Generator | None) -> Tensor:
        x = chain.prior((2,), generator=source)
        return chain.trajectory(x, 3, generator=source)

    assert torch.equal(draw(generator(1)), draw(generator(1)))
    assert not torch.equal(draw(generator(1)), draw(generator(2)))

    state = torch.get_rng_state()
    draw(generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    first = draw(None)
    torch.manual_seed(3)
    assert torch.equal(draw(None), first)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_standardisation(name: str):
    chain, _ = SYSTEMS[name]
    x = chain.prior((100,))
    torch.testing.assert_close(chain.postprocess(chain.preprocess(x)), x)
    torch.testing.assert_close(chain.preprocess(chain.postprocess(x)), x)


def test_negative_length():
    with pytest.raises(ValueError, match="length must not be negative, got -1"):
        Lorenz63().trajectory(torch.zeros(3), -1)


@pytest.mark.parametrize("name", list(ODES))
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dt": 0.0}, r"dt must be positive, got 0\.0"),
        ({"dt": math.nan}, "dt must be positive, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_step(name: str, arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        ODES[name](**arguments)


# Integration


@pytest.mark.parametrize("name", list(ODES))
def test_fourth_order(name: str):
    """Halving the step divides the error by 2^4."""
    x = ODES[name]().prior((8,), generator=generator()).double()

    def after(steps: int) -> Tensor:
        return ODES[name](dt=0.1, steps=steps).transition(x)

    exact = after(512)
    errors = [float((after(steps) - exact).norm()) for steps in (4, 8, 16)]
    assert errors[0] > 1e-9
    for before, half in pairwise(errors):
        assert 3.7 < math.log2(before / half) < 4.4


@pytest.mark.parametrize("name", list(ODES))
def test_steps_within_a_transition(name: str):
    x = ODES[name]().prior((4,), generator=generator()).double()
    once = ODES[name](dt=0.02, steps=2).transition(x)
    chain = ODES[name](dt=0.01)
    torch.testing.assert_close(chain.transition(chain.transition(x)), once)


def test_rk4_of_a_linear_equation():
    """dx/dt = x gives the Taylor polynomial of exp to the fourth order."""

    class Growth(DiscreteODE):
        def prior(self, shape=(), *, generator=None):
            return torch.ones(*shape, 1)

        def f(self, x):
            return x

    h = 0.3
    x = Growth(dt=h).transition(torch.ones(1, dtype=torch.float64))
    assert float(x) == pytest.approx(1 + h + h**2 / 2 + h**3 / 6 + h**4 / 24, rel=1e-14)


# Lorenz 1963


def test_lorenz63_equations():
    a, b, c = 1.5, -2.0, 20.0
    x = torch.tensor([a, b, c], dtype=torch.float64)
    expected = [10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c]
    assert Lorenz63().f(x).tolist() == pytest.approx(expected)
    expected = [3 * (b - a), a * (7 - c) - b, a * b - 2 * c]
    assert Lorenz63(sigma=3, rho=7, beta=2).f(x).tolist() == pytest.approx(expected)

    # the fixed points
    e = math.sqrt(8 / 3 * 27)
    for point in ((0.0, 0.0, 0.0), (e, e, 27.0), (-e, -e, 27.0)):
        assert Lorenz63().f(torch.tensor(point, dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("system", "mean", "std"),
    [
        (Lorenz63, 23.55, (7.92, 9.01, 8.62)),  # the statistics of the literature
        (NoisyLorenz63, 23.75, (7.97, 9.00, 8.45)),
    ],
)
def test_lorenz63_attractor(system: type[Lorenz63], mean: float, std: tuple[float, ...]):
    """Where the system dwells, after 50 time units: states that begin near a fixed point take long
    to leave it. And what standardises leaves about 0 and 1."""
    chain = system(dt=0.025)
    x = chain.prior((512,), generator=generator())
    x = chain.trajectory(x, 2048, last=True, generator=generator(1))
    states = chain.trajectory(x, 400, generator=generator(2)).reshape(-1, 3)

    # the standard errors of the means are about 0.06, 0.06 and 0.02, for other draws
    assert states.mean(0)[:2].abs().max() < 0.4
    assert float(states.mean(0)[2]) == pytest.approx(mean, abs=0.15)
    assert states.std(0).tolist() == pytest.approx(std, abs=0.1)

    standard = chain.preprocess(states)
    assert standard.mean(0).abs().max() < 0.25
    assert standard.std(0).tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.03)


def test_lorenz63_prior():
    """Around the attractor: the moments, to 5 standard errors of 2^15 draws."""
    n = 2**15
    x = Lorenz63().prior((n,), generator=generator())
    mean = torch.tensor([0.0, 0.0, 25.0])
    covariance = torch.tensor([[64.0, 50.0, 0.0], [50.0, 81.0, 0.0], [0.0, 0.0, 75.0]])
    variance = covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    error = 5 * ((variance * variance[:, None] + covariance**2) / n).sqrt()
    assert ((x.T.cov() - covariance).abs() < error).all()


def test_noisy_lorenz63():
    """Noise of variance dt on each coordinate, around the transition without it."""
    chain, calm = NoisyLorenz63(dt=0.025), Lorenz63(dt=0.025)
    x = torch.tensor([1.0, 2.0, 20.0], dtype=torch.float64)
    n = 2**15
    noise = chain.transition(x.expand(n, 3), generator=generator()) - calm.transition(x)
    assert (noise.mean(0).abs() < 5 * math.sqrt(0.025 / n)).all()
    error = (noise.T.cov() - 0.025 * torch.eye(3)).abs()
    assert (error < 5 * 0.025 * math.sqrt(2 / n)).all()


def test_log_prob():
    chain, calm = NoisyLorenz63(dt=0.025), Lorenz63(dt=0.025)
    x1 = chain.prior((4, 5), generator=generator()).double()
    x2 = chain.transition(x1, generator=generator(1))

    residual = x2 - calm.transition(x1)
    expected = -(residual**2).sum(-1) / (2 * 0.025) - 1.5 * math.log(2 * math.pi * 0.025)
    assert chain.log_prob(x1, x2).shape == (4, 5)
    torch.testing.assert_close(chain.log_prob(x1, x2), expected)

    # its mean is minus the entropy: 1.278 per transition at dt = 0.025
    x1 = chain.prior((2**14,), generator=generator())
    measured = chain.log_prob(x1, chain.transition(x1, generator=generator(1))).mean()
    assert float(measured) == pytest.approx(1.276, abs=5 * math.sqrt(1.5 / 2**14))


# The others


def test_damped_spring():
    """Moments of a transition and of the prior: 2^15 draws, 5 standard errors."""
    system, n = DampedSpring(dt=0.1), 2**15
    chain = LinearGaussianChain.of(system)
    x = torch.tensor([1.0, -0.5, 0.3, 2.0])
    expected = [
        1.0 - 0.5 * 0.1 + 0.3 * 0.005,
        -0.5 + 0.3 * 0.1,
        -0.5 * 1.0 + 0.1 * 0.5 + 0.2 * 2.0,
        0.99 * 2.0,
    ]
    assert (system.A @ x + system.b).tolist() == pytest.approx(expected)

    after = system.transition(x.expand(n, 4), generator=generator())
    variance = torch.tensor([0.01, 0.01, 0.01, 0.1])
    assert ((after.mean(0) - torch.tensor(expected)).abs() < 5 * (variance / n).sqrt()).all()
    error = (after.T.cov() - variance.diag()).abs()
    assert (error < 5 * (2 * variance * variance[:, None] / n).sqrt()).all()

    first = system.prior((n,), generator=generator())
    assert ((first.mean(0) - torch.tensor([1.0, 0, 0, 0])).abs() < 5 / math.sqrt(n)).all()
    assert ((first.T.cov() - torch.eye(4)).abs() < 5 * math.sqrt(2 / n)).all()
    assert chain.first.mean.tolist() == pytest.approx((system.A[:, 0]).tolist())


def test_lorenz96():
    """The equations, and that the products neither make nor destroy energy."""
    chain = Lorenz96(n=7, F=16.0)
    x = chain.prior((3,), generator=generator()).double()
    f = chain.f(x)
    for i in range(7):
        before, after, after2 = x[:, i - 1], x[:, (i + 1) % 7], x[:, (i + 2) % 7]
        torch.testing.assert_close(f[:, i], (before - after2) * after - x[:, i] + 16)

    # d/dt |x|^2 / 2 = -|x|^2 + F sum(x)
    torch.testing.assert_close((x * f).sum(-1), -(x**2).sum(-1) + 16 * x.sum(-1))
    rest = torch.full((7,), 16.0)
    assert torch.equal(chain.f(rest), torch.zeros(7))


def test_lotka_volterra():
    """delta u - gamma log u + beta v - alpha log v does not change."""
    rates = {"alpha": 1.2, "beta": 0.8, "delta": 0.9, "gamma": 1.1}
    chain = LotkaVolterra(**rates, dt=0.05)
    x = chain.prior((6,), generator=generator()).double()

    def invariant(x: Tensor) -> Tensor:
        u, v = x.exp().unbind(-1)
        return 0.9 * u - 1.1 * u.log() + 0.8 * v - 1.2 * v.log()

    trajectory = chain.trajectory(x, 200)
    torch.testing.assert_close(
        invariant(trajectory), invariant(x).expand(200, 6), rtol=0, atol=2e-6
    )
    assert (trajectory[100] - x).norm() > 0.1  # while the state does

    draws = chain.prior((2**12,), generator=generator())
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() <= 1
