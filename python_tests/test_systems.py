"""Dynamical systems: their laws, their invariants and the order of their integration."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
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
    TwoScaleLorenz96,
)
from sda_fast.evaluation import LinearGaussianChain
from sda_fast.systems import CATALOGUE, build_system

SYSTEMS: dict[str, tuple[MarkovChain, int]] = {
    "spring": (DampedSpring(), 4),
    "lorenz63": (Lorenz63(dt=0.025), 3),
    "noisy lorenz63": (NoisyLorenz63(dt=0.025), 3),
    "lorenz96": (Lorenz96(n=12), 12),
    "two scales": (TwoScaleLorenz96(n=8, J=3), 32),
    "lotka-volterra": (LotkaVolterra(), 2),
}
ODES = {
    "lorenz63": Lorenz63,
    "lorenz96": Lorenz96,
    "two scales": TwoScaleLorenz96,
    "lotka-volterra": LotkaVolterra,
}


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
    whole = x.long()
    for standardise in (chain.preprocess, chain.postprocess):
        expected = standardise(whole.float())
        torch.testing.assert_close(standardise(whole), expected, check_dtype=False)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_whole_numbers(name: str):
    """They are states like others: nothing is truncated."""
    chain, size = SYSTEMS[name]
    x = torch.arange(2 * size).reshape(2, size) % 3
    for last in (False, True):
        states = chain.trajectory(x, 3, last, generator=generator())
        assert states.dtype == torch.float32
        assert torch.equal(states, chain.trajectory(x.float(), 3, last, generator=generator()))
    after = chain.transition(x.to(torch.int8), generator=generator())
    assert torch.equal(after, chain.transition(x.float(), generator=generator()))
    assert torch.equal(chain.trajectory(x, 0, last=True), x.float())
    assert torch.equal(chain.preprocess(x), chain.preprocess(x.float()))
    assert torch.equal(chain.postprocess(x), chain.postprocess(x.float()))
    if hasattr(chain, "log_prob"):
        assert torch.equal(chain.log_prob(x, x), chain.log_prob(x.float(), x.float()))


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
    chain = ODES[name](dt=0.01, steps=1)
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


def test_lorenz63_symmetry():
    """(a, b, c) -> (-a, -b, c) maps trajectories to trajectories."""
    chain = Lorenz63(dt=0.025)
    mirror = torch.tensor([-1.0, -1.0, 1.0])
    x = chain.prior((8,), generator=generator())
    trajectory = chain.trajectory(x, 200)
    assert torch.equal(chain.trajectory(mirror * x, 200), mirror * trajectory)
    assert not torch.equal(trajectory[..., 0], -trajectory[..., 0])


def test_lorenz63_volume():
    """The divergence of the flow is -(sigma + 1 + beta), everywhere: volumes shrink."""
    chain = Lorenz63()
    for x in chain.prior((4,), generator=generator()).double():
        jacobian = torch.autograd.functional.jacobian(chain.f, x)
        assert float(jacobian.trace()) == pytest.approx(-(10 + 1 + 8 / 3))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_of_the_damped_spring(dtype: torch.dtype):
    system = DampedSpring(dt=0.1)
    x1 = system.prior((3, 5), generator=generator()).to(dtype)
    x2 = system.transition(x1, generator=generator(1))
    law = torch.distributions.MultivariateNormal(
        x1.double() @ system.A.T.double(), system.Sigma_x.double()
    )
    assert x2.dtype == dtype
    torch.testing.assert_close(system.log_prob(x1, x2), law.log_prob(x2.double()).to(dtype))


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


def test_lorenz96_conserves_energy():
    """Without forcing and drag: the advection alone, integrated."""

    class Advection(Lorenz96):
        def f(self, x: Tensor) -> Tensor:
            return super().f(x) + x - self.F

    chain = Advection(n=40, F=8.0, dt=0.01)
    x = 3 * chain.prior((4,), generator=generator()).double()
    trajectory = chain.trajectory(x, 100)
    energy = trajectory.square().sum(-1)
    torch.testing.assert_close(energy, x.square().sum(-1).expand(100, 4), rtol=1e-4, atol=0)
    assert ((trajectory[-1] - x).norm(dim=-1) > 10).all()  # while the state changes


def test_lorenz96_climatology():
    """Mean 2.34 and standard deviation 3.64 at F = 8, as in the literature, the same at all sites.

    Means over 64 trajectories of 50 time units: their standard errors are below 0.01 over all
    sites, and about 0.05 at one.
    """
    chain = Lorenz96(n=40, F=8.0, dt=0.05)
    x = chain.prior((64,), generator=generator())
    x = chain.trajectory(x, 200, last=True)
    states = chain.trajectory(x, 1000)
    assert float(states.mean()) == pytest.approx(2.34, abs=0.03)
    assert float(states.std()) == pytest.approx(3.64, abs=0.03)
    assert (states.mean(dim=(0, 1)) - 2.34).abs().max() < 0.25


def test_two_scales():
    """Lorenz's equations, site by site, in his own numbering: both circles run the other way."""
    n, J, F, h, b, c = 5, 4, 7.0, 0.8, 6.0, 9.0
    chain = TwoScaleLorenz96(n=n, J=J, F=F, h=h, b=b, c=c)
    state = chain.prior((), generator=generator()).double()
    x, y = state[:n].flip(0), state[n:].flip(0)

    slow, fast = torch.empty(n).double(), torch.empty(n * J).double()
    for k in range(n):
        slow[k] = -x[k - 1] * (x[k - 2] - x[(k + 1) % n]) - x[k] + F
        slow[k] -= h * c / b * y[k * J : (k + 1) * J].sum()
    for m in range(n * J):
        following, after = y[(m + 1) % (n * J)], y[(m + 2) % (n * J)]
        fast[m] = -c * b * following * (after - y[m - 1]) - c * y[m] + h * c / b * x[m // J]

    torch.testing.assert_close(chain.f(state), torch.cat((slow.flip(0), fast.flip(0))))


def test_two_scales_energy():
    """d/dt (|x|^2 + |y|^2) / 2 = -|x|^2 - c |y|^2 + F sum(x): the rest conserves it."""
    chain = TwoScaleLorenz96(n=6, J=3, F=7.0, h=0.8, b=6.0, c=9.0)
    state = chain.prior((4,), generator=generator()).double()
    x, y = state[:, :6], state[:, 6:]
    expected = -(x**2).sum(-1) - 9 * (y**2).sum(-1) + 7 * x.sum(-1)
    torch.testing.assert_close((state * chain.f(state)).sum(-1), expected)


def test_two_scales_apart():
    """Uncoupled, the slow sites are the system of one scale."""
    chain, slow = TwoScaleLorenz96(h=0.0), Lorenz96(n=36, F=10.0, dt=0.05, steps=10)
    x = chain.prior((3,), generator=generator())
    torch.testing.assert_close(chain.transition(x)[:, :36], slow.transition(x[:, :36]))
    assert (chain.trajectory(x, 100, last=True)[:, 36:].abs() < 0.2).all()


def test_two_scales_hidden():
    """Only the slow sites are shown, and they alone do not determine what follows."""
    chain, hidden = TwoScaleLorenz96(), TwoScaleLorenz96(hidden=True)
    x = chain.trajectory(chain.prior((3,), generator=generator()), 50, last=True)
    assert hidden.prior((3,)).shape == (3, 396)
    trajectory = hidden.trajectory(x, 20)
    assert trajectory.shape == (20, 3, 36)
    assert torch.equal(trajectory, chain.trajectory(x, 20)[..., :36])

    # from the last state, which is whole, it goes on
    last = hidden.trajectory(x, 10, last=True)
    assert torch.equal(hidden.trajectory(last, 10), trajectory[10:])

    other = torch.cat((x[:, :36], x[:, 36:].flip(0)), dim=-1)
    assert (hidden.trajectory(other, 1)[0] - trajectory[0]).abs().max() > 0.01


def test_two_scales_climate():
    """The slow sites vary by far more than the fast, and stay bounded with the default steps."""
    chain = TwoScaleLorenz96()
    x = chain.prior((16,), generator=generator())
    states = chain.trajectory(chain.trajectory(x, 100, last=True), 200)
    slow, fast = states[..., :36], states[..., 36:]
    assert slow.abs().max() < 20
    assert 2 < slow.std() < 5
    assert 0.05 < fast.std() < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"J": 0}, "J must be at least 1"), ({"b": 0.0}, "b must be positive")],
)
def test_two_scales_bad_arguments(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        TwoScaleLorenz96(**arguments)


# By name


@pytest.mark.parametrize("name", [n for n, entry in CATALOGUE.items() if len(entry.dims) == 1])
def test_catalogue(name: str):
    """Every parameter of a system is in it, and is what the system then has."""
    entry = CATALOGUE[name]
    chain = build_system(name)
    assert type(chain) is entry.system
    assert not hasattr(chain, "steps") or "steps" in entry.parameters
    changed = {key: 2 * value for key, value in entry.parameters.items() if key != "hidden"}
    chain = build_system(name, **changed)
    for key, value in changed.items():
        assert name == "damped_spring" or getattr(chain, key) == value
    assert chain.prior((2,)).ndim == 1 + len(entry.dims)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"system must be one of lorenz63, .*, got 'lorenz64'"):
        build_system("lorenz64")
    with pytest.raises(ValueError, match=r"parameter of Lorenz96 must be one of n, .*, got 'J'"):
        build_system("lorenz96", J=3)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lorenz63", {"steps": 1.5}, "steps of NoisyLorenz63 must be an integer, got 1.5"),
        ("lorenz96", {"n": True}, "n of Lorenz96 must be an integer, got True"),
        ("lorenz96", {"n": math.inf}, "n of Lorenz96 must be an integer, got inf"),
        ("lorenz63", {"rho": None}, "rho of NoisyLorenz63 must be a number, got None"),
        ("lorenz63", {"rho": True}, "rho of NoisyLorenz63 must be a number, got True"),
        ("lorenz63", {"rho": "28"}, "rho of NoisyLorenz63 must be a number, got '28'"),
        ("lorenz96_two_scale", {"hidden": 1}, "hidden of .* must be true or false, got 1"),
    ],
)
def test_parameters_of_another_kind(name: str, parameters: dict[str, Any], message: str):
    """Are refused, and not cut to what fits."""
    with pytest.raises(ValueError, match=message):
        build_system(name, **parameters)


def test_parameters_as_numbers():
    chain = build_system("lorenz63", steps=2.0, rho=np.float32(20), dt=np.int64(1))
    assert (chain.steps, chain.rho, chain.dt) == (2, 20, 1)
    assert (type(chain.steps), type(chain.rho), type(chain.dt)) == (int, float, float)


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
