"""The study of training, and its preconditioned kernel."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments import training as study
from experiments.lorenz import excess
from experiments.lorenz.cases import FILTER
from experiments.preconditioning import PreconditionedKernel
from sda_fast import VPSDE
from sda_fast import Recipe as Sampling
from sda_fast.kernels import VelocityKernel

W, D = 4, 2
SHORT = Sampling("fast", "junction", (0.9, 0.4, 0.1), (1, 1), 0.3, True, 5.0)


class Score(nn.Module):
    """What a kernel preconditions, of no parameters."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x, t, c):
        return self.scale * torch.tanh(x + t.mean())


def masks(length, n):
    return (torch.arange(W) < length).float().expand(n, W)


def walks(n):
    """Gaussian windows: a random walk from a wide start."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(n, W, D, generator=generator) * torch.tensor([1, 0.1, 0.1, 0.1])[:, None]
    return steps.cumsum(dim=1)


@pytest.fixture(scope="module")
def windows():
    return walks(2**16)


# Preconditioning


@pytest.mark.parametrize("length", [1, 3, 4])
def test_preconditioned_is_exact_for_gaussians(windows, length):
    kernel = PreconditionedKernel(Score(0.0), windows)
    k, t = length * D, torch.tensor([0.01, 0.3, 0.95])
    x = torch.randn(3, W * D)
    x[:, k:] = 0
    estimate = kernel(x, t, masks(length, 3))

    covariance = torch.cov(windows.flatten(1).double().T)[:k, :k]
    process = VPSDE(nn.Identity(), ())
    for row, noisy, time in zip(estimate, x, t, strict=True):
        mu, sigma = process.mu(time).double(), process.sigma(time).double()
        S = mu**2 * covariance + sigma**2 * torch.eye(k)
        expected = sigma * torch.linalg.solve(S, noisy[:k].double())
        torch.testing.assert_close(row[:k].double(), expected, atol=1e-4, rtol=1e-3)
        assert not row[k:].any()

    # one time for all windows
    once = kernel(x[:1].expand(3, -1), t[0], masks(length, 3))
    torch.testing.assert_close(once[2], estimate[0])


def test_of_unit_covariance_it_is_the_velocity(windows):
    kernel = PreconditionedKernel(Score(), windows)
    kernel.values.fill_(1.0)
    x, t, c = torch.randn(3, W * D), torch.tensor([0.1, 0.5, 0.9]), masks(W, 3)
    velocity = VelocityKernel(Score(-1.0))
    torch.testing.assert_close(kernel(x, t, c), velocity(x, t, c), atol=1e-5, rtol=1e-3)


# Losses


def test_long_windows_estimate_what_short_ones_do_on_average(windows):
    """The long window's estimate is as good a target as the noise, of less variance."""
    torch.manual_seed(0)
    kernel = PreconditionedKernel(Score(0.0), windows)
    sde = VPSDE(nn.Identity(), (W, D))
    x, eps = walks(2**17)[2**16 :], torch.randn(2**16, W, D)
    t = torch.tensor(0.05)
    noisy = sde.mu(t) * x + sde.sigma(t) * eps
    mask = masks(1, len(x))
    alone = torch.zeros_like(noisy)
    alone[:, 0] = noisy[:, 0]  # whose law is the one that windows of one state were given
    short = kernel(alone.flatten(1), t, mask)[:, :D]
    long = kernel(noisy.flatten(1), t, masks(W, len(x)))[:, :D]

    noise = eps[:, 0]
    for target in (noise, long):
        product = (target - short) * short
        error = product.std() / product.numel() ** 0.5
        assert product.mean().abs() < 4 * error
    assert (long - short).var() < 0.8 * (noise - short).var()


def test_times():
    sde = VPSDE(nn.Identity(), ())
    plain, early, edm = (
        study.times(study.RECIPES[name], sde, 4096) for name in (study.BASE, "early times", "EDM")
    )
    assert float(plain.median()) == pytest.approx(0.5, abs=0.01)
    assert float(early.median()) == pytest.approx(0.25, abs=0.01)
    level = torch.log(sde.sigma(edm) / sde.mu(edm))
    assert float(level.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(level.std()) == pytest.approx(1.2, abs=0.02)


# The studies


@pytest.fixture
def small(small_cases, monkeypatch):
    monkeypatch.setattr(study.cases, "LOST", 10.0)  # untrained, all members leave the attractor
    monkeypatch.setattr(study, "TRAJECTORIES", 8)
    monkeypatch.setattr(study, "STATES", 64)
    monkeypatch.setattr(study, "BATCH", 8)
    monkeypatch.setattr(study, "RECIPES", {n: replace(r, width=8) for n, r in RECIPES.items()})
    monkeypatch.setattr(study, "preset", lambda name, **_: SHORT)
    cached = (study.data, study.errors, study.front.second_run)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


RECIPES = dict(study.RECIPES)


@pytest.mark.filterwarnings("ignore:the effective sample size:RuntimeWarning")
def test_run(small, tmp_path, monkeypatch):
    profile = study.Profile(tuple(RECIPES), 2, windows=64, truths=(0,), members=20, unguided=4)
    text = study.run(tmp_path, profile)
    for name in (*RECIPES, *study.SHIPPED):
        assert f"| lo | {name} | " in text
        assert f"| 9 | {name} | " in text
    assert "| 1 | 5 and 9 only |" not in text
    records = [json.loads(x) for x in (tmp_path / "errors.jsonl").read_text().splitlines()]
    base = next(r for r in records if r["recipe"] == study.BASE)
    assert not any(map(any, base["gain"]))

    # what is known is neither trained nor sampled again
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("trained again"))
    assert study.run(tmp_path, profile) == text


def test_a_run_that_diverges_is_infinitely_bad():
    good = {"w1": 2.0, "floor": 1.0, "log_prior": 80.0, "exact_log_prior": 81.0, "lost": 0.0}
    good |= {"energy": 0.5, "exact_coverage": 0.9, "setting": "lo", "recipe": study.BASE}
    bad = {"error": "not finite", "setting": "lo", "recipe": "wide"}
    text = study.posteriors_table([good, bad], {})
    assert "| lo | wide | inf (+inf" in text


@pytest.mark.filterwarnings("ignore:the effective sample size:RuntimeWarning")
def test_excess(small_cases, tmp_path, monkeypatch):
    ways = {"fast": (excess.PRIOR, SHORT, 0.03), "gamma 0.3": (excess.LONGER, SHORT, 0.3)}
    monkeypatch.setattr(excess, "METHODS", ways)
    monkeypatch.setattr(excess, "DRAWS", 2)
    monkeypatch.setattr(excess, "RECIPE", SHORT)
    profile = excess.Profile((4, 7), 256, 512, ("fast",), 20, lengths=(9, 17), unguided=4)
    text = excess.run(tmp_path, profile)
    lines = text.splitlines()
    assert len(lines) == (2 + 2 * 3) + 1 + (2 + 2 * 3) + 1 + (2 + 1 + 8)
    assert any(line.startswith(f"| lo | {FILTER} | 1.00 ± 0.00 |") for line in lines)
    assert any(line.startswith("| hi | gamma 0.3 |") for line in lines)
    excess.attractor.cache_clear()
    excess.reference.cache_clear()
