"""The studies of what the paper leaves open, in small."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments.lorenz import cases, misspecified, non_markov, wrong_model
from sda_fast import Recipe
from sda_fast.systems import build_system

# 512 particles are few
pytestmark = pytest.mark.filterwarnings("ignore:the effective sample size:RuntimeWarning")


@pytest.fixture
def few(small_cases, monkeypatch):
    """Few particles and steps, and nothing is lost where they do not lead to the attractor."""
    monkeypatch.setattr(cases, "LOST", math.inf)
    monkeypatch.setattr(cases, "RECIPES", {"8 steps": Recipe("", None, 8, 1, 0.5)})


# The wrong noise


@pytest.mark.parametrize("noise", wrong_model.NOISES)
def test_noise_is_of_its_likelihood(noise: str):
    """The mean log-density of draws is minus the entropy, greatest under the right assumption."""
    draw, assumptions = wrong_model.NOISES[noise]
    z = draw((100_000, 1), Generator().manual_seed(0))

    def density(assumed: str, y: torch.Tensor) -> torch.Tensor:
        likelihood = assumptions[assumed](y, lambda x: x)
        return likelihood.log_density(y, torch.zeros_like(y), 0.0)

    right = float(density("right", z).mean())
    for assumed in assumptions:
        if assumed != "right" and not assumed.startswith("Huber"):  # Huber's is not normalised
            assert float(density(assumed, z).mean()) < right

    # the right one integrates to 1
    grid = torch.linspace(-400, 400, 1_600_001, dtype=torch.float64)[:, None]
    assert float(density("right", grid).exp().sum() * 0.0005) == pytest.approx(1, abs=1e-3)


def test_filter_and_guidance_know_the_same():
    """The filter's likelihood of all states is that of the trajectory."""
    truth, _ = cases.simulate(0)
    x = torch.stack((truth, truth + 1))
    y = wrong_model.operator(cases.chain.preprocess(truth))
    for _, assumptions in wrong_model.NOISES.values():
        for make in assumptions.values():
            likelihood = make(y, wrong_model.operator)
            each = cases.total_log_likelihood(wrong_model.Readings(likelihood), x)
            together = likelihood(cases.chain.preprocess(x))
            torch.testing.assert_close(each, together, rtol=1e-4, atol=1e-3)


def test_wrong_model(tmp_path, few, monkeypatch):
    heavy = {"heavy": wrong_model.NOISES["heavy"]}
    monkeypatch.setattr(wrong_model, "NOISES", heavy)
    wrong_model.make_case.cache_clear()
    profile = replace(wrong_model.QUICK, truths=2, members=4, recipe="8 steps")
    report = wrong_model.run(tmp_path, profile)
    wrong_model.make_case.cache_clear()
    assert (tmp_path / "wrong_model.png").stat().st_size > 0
    assert len(report.splitlines()) == 2 + 2 * 4
    assert report.count(" ± ") == 2 * 4 - 1  # of all but the floor


# The wrong system


def test_misspecified(tmp_path, few):
    misspecified.make_case.cache_clear()
    profile = replace(misspecified.QUICK, errors=(0, 20), truths=1, members=4)
    profile = replace(profile, recipe="8 steps", width=8, iterations=2)
    report = misspecified.run(tmp_path, profile)
    misspecified.make_case.cache_clear()
    misspecified.posterior_of_rho.cache_clear()
    assert (tmp_path / "misspecified.png").stat().st_size > 0
    first, second = report.split("\n\n")
    assert len(first.splitlines()) == 2 + 2 * len(misspecified.METHODS)
    assert len(second.splitlines()) == 2 + 2
    assert "diverged" not in report
    assert misspecified.make_system(20).rho == pytest.approx(33.6)
    assert misspecified.make_system(0) is cases.chain


# A system that is not Markov


def test_memory_of_an_autoregression():
    """With x_i = 0.5 x_i-2 + z one state before tells nothing, two all that there is."""
    generator = Generator().manual_seed(0)
    x = torch.randn(400, 80, 1, generator=generator)
    for i in range(2, 80):
        x[:, i] += 0.5 * x[:, i - 2]
    x = x[:, 20:]
    # var x = 4/3, and that of an increment twice as much, since neighbours are independent
    one, two, three = non_markov.memory(x[:200], x[200:], states=(1, 2, 3))
    assert one == pytest.approx((4 / 3) / (8 / 3), abs=0.02)
    assert two == pytest.approx(1 / (8 / 3), abs=0.02)
    assert three == pytest.approx(two, abs=0.01)


def test_memory_of_a_drive():
    """Of a map and a drive that remembers, only the drive is left, and only what of it is new."""
    generator = Generator().manual_seed(0)

    def M(x):
        return 0.5 * torch.cos(3 * x)

    drive = torch.randn(400, 80, 1, generator=generator)
    for i in range(1, 80):
        drive[:, i] = 0.8 * drive[:, i - 1] + 0.6 * drive[:, i]
    x = torch.zeros(400, 80, 1)
    for i in range(1, 80):
        x[:, i] = M(x[:, i - 1]) + drive[:, i]
    x = x[:, 20:]
    scale = float((x[:, 1:] - x[:, :-1]).var())
    one, two, three = (scale * v for v in non_markov.memory(x[:200], x[200:], M, (1, 2, 3)))
    assert two == pytest.approx(0.36, abs=0.01)
    assert three == pytest.approx(0.36, abs=0.01)
    assert two < one < 1
    # and a map alone has nothing left
    x = x[:, :1].expand(-1, 12, -1).clone()
    for i in range(1, 12):
        x[:, i] = M(x[:, i - 1])
    assert non_markov.memory(x[:200], x[200:], M, (1, 2)) == pytest.approx([0, 0], abs=1e-9)


def test_forgetful_trajectories():
    """Of a drive that remembers one state, none remembered is what one expects by hand, and one is
    as good as data."""
    generator = Generator().manual_seed(0)
    x = torch.randn(800, 40, 1, generator=generator)
    for i in range(2, 40):
        x[:, i] += 0.5 * x[:, i - 2]
    x = x[:, 10:]

    def still(x):
        return x

    shares = []
    for n in (1, 2):
        z = non_markov.forgetful(x, still, n, 20, generator)
        assert z.shape == (800, 20, 1)
        assert float(z.var()) == pytest.approx(4 / 3, rel=0.05)
        shares += non_markov.memory(x, z, still, (2,))
    # white: x_i - 0.5 x_i-2 has variance 1.25 var x, over that of an increment, 2 var x
    assert shares[0] == pytest.approx(1.25 / 2, rel=0.05)
    assert shares[1] == pytest.approx(1 / (8 / 3), rel=0.05)


def test_uncoupled_slow_sites_are_markov():
    """With h = 0 the slow sites follow Lorenz-96 of one scale, and no drive is left."""
    chain = build_system(non_markov.SYSTEM, **non_markov.parameters(0.0, 2.0))
    x = chain.prior((), generator=Generator().manual_seed(0))
    n = non_markov.SITES
    M = non_markov.slow_alone(2.0)
    torch.testing.assert_close(chain.transition(x)[:n], M(x[:n]))


def test_rules_read_lengths_that_are_learnt():
    """The windows and overlaps of every rule are among the lengths of the training."""
    for rule in non_markov.RULES.values():
        assert set(rule.plan(non_markov.LENGTH).lengths) <= set(non_markov.LENGTHS)


def test_non_markov(tmp_path, monkeypatch):
    def data(h, c, n, length, seed):
        return torch.randn(n, length, non_markov.SITES, generator=Generator().manual_seed(seed))

    monkeypatch.setattr(non_markov, "data", data)
    monkeypatch.setattr(non_markov, "prior", untrained)
    few = replace(non_markov.QUICK.settings, members=4, truths=2, trajectories=16, steps=2, C=1)
    closed = replace(
        non_markov.QUICK.closed, length=7, windows=(2, 3), shares=(0.8,), times=(5.0,), sampled=(3,)
    )
    profile = non_markov.Profile(
        closed=closed, scan=((2.0, 2.0),), trained=((0.0, 2.0),), seeds=(0, 1), settings=few
    )
    report = non_markov.run(tmp_path, profile)
    assert (tmp_path / "non_markov.png").stat().st_size > 0
    assert "diverged" not in report
    assert report.count("| h = 2, c = 2 |") == 1
    assert report.count("| h = 0, Markov |") == 2 + len(non_markov.RULES)
    assert report.count("±") == len(non_markov.RULES) * len(non_markov.METRICS)
    assert non_markov.run(tmp_path, profile) == report


def untrained(cell, folder, device):
    """Returns an untrained prior: how priors are trained has tests of its own."""
    from sda_fast import VPSDE, MCScoreNet
    from sda_fast.io import Standardisation

    n = non_markov.SITES
    network = MCScoreNet(n, order=4, length_aware=True, hidden_features=[8])
    return (
        VPSDE(network, shape=(non_markov.LENGTH, n)),
        Standardisation(torch.zeros(n), torch.ones(n)),
    )
