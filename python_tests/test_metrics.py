"""Scores of an ensemble, against closed forms, integrals and literal sums."""

import math
import sys
from itertools import pairwise

import pytest
import torch
from torch import Generator

from sda_fast import NoisyLorenz63
from sda_fast.evaluation import (
    coverage,
    crps,
    flatness,
    log_likelihood,
    log_prior,
    rank_histogram,
    rmse,
    spread,
    spread_skill,
)

stats = pytest.importorskip("scipy.stats")
integrate = pytest.importorskip("scipy.integrate")


def test_crps_is_the_integral():
    x, truth = torch.randn(7).double(), torch.tensor(0.3).double()

    def integrand(z: float) -> float:
        return (float((x <= z).double().mean()) - float(z >= truth)) ** 2

    points = sorted([*x.tolist(), float(truth)])
    pieces = [integrate.quad(integrand, a, b)[0] for a, b in pairwise(points)]
    assert float(crps(x, truth)) == pytest.approx(sum(pieces), rel=1e-9)


def test_crps_is_its_sums():
    x, truth = torch.randn(9, 2, 3).double(), torch.randn(2, 3).double()
    error = (x - truth).abs().mean(dim=0)
    pairs = (x[:, None] - x[None]).abs().sum(dim=(0, 1))

    torch.testing.assert_close(crps(x, truth), error - pairs / (2 * 81))
    torch.testing.assert_close(crps(x, truth, fair=True), error - pairs / (2 * 72))


def test_crps_and_energy():
    """Twice the score is the squared energy distance of the ensemble and the truth."""
    x, truth = torch.randn(30).double(), torch.tensor(0.7).double()
    expected = stats.energy_distance(x.numpy(), [float(truth)]) ** 2 / 2
    assert float(crps(x, truth)) == pytest.approx(expected, rel=1e-9)


def test_crps_of_a_gaussian():
    """N(0, 1) at y: y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi) (Gneiting & Raftery, 2007)."""
    y, n = 0.8, 4000
    grid = torch.from_numpy(stats.norm.ppf((torch.arange(n) + 0.5).numpy() / n))
    expected = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / math.sqrt(math.pi)
    assert float(crps(grid, torch.tensor(y))) == pytest.approx(expected, rel=1e-3)

    # the fair score has that mean whatever the number of members; the standard one has not
    members = torch.randn(3, 200_000).double()
    truth = torch.full((200_000,), y).double()
    for fair in (True, False):
        score = crps(members, truth, fair=fair)
        near = abs(float(score.mean()) - expected) < 5 * float(score.std()) / 200_000**0.5
        assert near == fair


def test_spread_and_skill():
    """The truth and members of one law: the ratio is 1 however few members."""
    x = 3 * torch.randn(5, 100_000)
    truth = 3 * torch.randn(100_000)
    assert spread(x) == pytest.approx(3, rel=0.02)
    assert spread_skill(x, truth) == pytest.approx(1, rel=0.02)
    assert spread_skill(x, 2 * truth) < 0.7

    ratio = math.sqrt(6 / 5) * spread(x) / rmse(x.double().mean(dim=0), truth)
    assert spread_skill(x, truth) == pytest.approx(ratio, rel=1e-6)


def test_spread_and_skill_of_a_perfect_mean():
    x = torch.tensor([[-1.0, 2.0], [1.0, 4.0]])
    assert spread_skill(x, torch.tensor([0.0, 3.0])) == math.inf
    assert spread_skill(x[:1].expand(2, 2), torch.tensor([0.0, 3.0])) == 0
    with pytest.raises(ValueError, match="spread or error, but all members are the truth"):
        spread_skill(x[:1].expand(2, 2), x[0])


def test_rank_histogram():
    x = torch.tensor([[0.0, 5.0, 1.0], [2.0, 4.0, 3.0]])
    counts = rank_histogram(x, torch.tensor([1.0, 6.0, 0.0]))
    assert counts.tolist() == [1, 1, 1]


def test_rank_histogram_tells_what_is_reliable():
    generator = Generator().manual_seed(0)
    members = torch.randn(9, 5000, generator=generator)
    truth = torch.randn(5000, generator=generator)
    counts = rank_histogram(members, truth)

    assert counts.shape == (10,)
    assert counts.sum() == 5000
    assert flatness(counts).p_value > 1e-3
    narrow = rank_histogram(0.5 * members, truth)
    assert narrow[0] > 2 * narrow[5] < narrow[-1]  # the sides are high
    assert flatness(narrow).p_value < 1e-6


def test_ties_are_broken_at_random():
    """Of numbers with few values, as rainfall, the histogram is flat as well."""
    generator = Generator().manual_seed(0)
    x = torch.randint(0, 2, (10, 20_000), generator=generator).double()
    counts = rank_histogram(x[:9], x[9], generator=generator)
    again = rank_histogram(x[:9], x[9], generator=Generator().manual_seed(5))

    assert flatness(counts).p_value > 1e-3
    assert not torch.equal(counts, again)


def test_flatness():
    counts = torch.tensor([12, 8, 15, 5])
    statistic = float(((counts - 10.0) ** 2 / 10).sum())
    result = flatness(counts)
    assert result.statistic == pytest.approx(statistic)
    assert result.p_value == pytest.approx(stats.chi2(3).sf(statistic))


def test_log_likelihood():
    x = torch.randn(4, 6, 3)
    y, std = torch.randn(6, 1), 0.3
    expected = torch.distributions.Normal(x[..., :1].double(), std).log_prob(y.double())
    torch.testing.assert_close(log_likelihood(x[..., :1], y, std), expected.sum(dim=(1, 2)))

    y[::2] = math.nan
    expected = expected[:, 1::2].sum(dim=(1, 2))
    torch.testing.assert_close(log_likelihood(x[..., :1], y, std), expected)
    assert log_likelihood(x[0, :, :1], y, std).shape == ()


def test_errors():
    x, truth = torch.randn(5, 3), torch.randn(3)
    for score in (crps, spread_skill, rank_histogram, coverage):
        with pytest.raises(
            ValueError, match=r"the shape of a member, \(3,\), but has shape \(2,\)"
        ):
            score(x, truth[:2])
    with pytest.raises(ValueError, match="2 or more members, but has shape"):
        spread(x[:1])
    with pytest.raises(ValueError, match="2 or more members, but has shape"):
        crps(x[:1], truth, fair=True)
    with pytest.raises(ValueError, match=r"shape of the estimate, \(5, 3\), but has shape \(3,\)"):
        rmse(x, truth)
    for score in (rank_histogram, coverage):
        with pytest.raises(ValueError, match="hold NaN"):
            score(x, truth * math.nan)
    for level in (0.0, 1.0, -0.5, 90, math.nan):
        with pytest.raises(ValueError, match=f"level must be between 0 and 1, but is {level}"):
            coverage(x, truth, level)
    with pytest.raises(ValueError, match="two ranks or more"):
        flatness(torch.tensor([3]))
    with pytest.raises(
        ValueError, match=r"last dimensions of y, \(6, 1\), but has shape \(4, 6, 3\)"
    ):
        log_likelihood(torch.zeros(4, 6, 3), torch.zeros(6, 1), 1.0)
    for std in (0.0, -1.0, math.nan, torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match=r"std must be positive, but its least is"):
            log_likelihood(x, truth, std)
    for states in (truth, truth[None], x[:, None]):
        with pytest.raises(ValueError, match=r"x must be trajectories .* of 2 or more states"):
            log_prior(NoisyLorenz63(), states)


def test_flatness_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"needs SciPy: pip install 'sda-fast\[evaluation\]'"):
        flatness(torch.tensor([3, 4]))


def test_coverage():
    """The band of eleven members from 0 to 10 is from 1 to 9, its edges included."""
    x = torch.arange(11)
    truth = torch.tensor([0, 1, 5, 9, 10])
    for dtype in (torch.float64, torch.float32, torch.float16, torch.int64):
        assert coverage(x.to(dtype), truth, 0.8) == pytest.approx(3 / 5)
    members = x[:, None, None].expand(11, 5, 2)
    assert coverage(members, truth[:, None].expand(5, 2), 0.8) == pytest.approx(3 / 5)

    # several truths of the same shape
    truths = truth[:, None, None] + torch.zeros(5, 2)
    assert coverage(members, truths, 0.8) == pytest.approx(3 / 5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rmse_does_not_overflow(scale: float):
    x = scale * torch.tensor([3.0, -4.0])
    assert rmse(x, 0 * x) / scale == pytest.approx(math.sqrt(12.5))
    assert rmse(torch.tensor([300.0, -400.0]).half(), torch.zeros(2)) == pytest.approx(
        100 * math.sqrt(12.5)
    )
    assert rmse(torch.tensor([3, -4]), torch.zeros(2)) == pytest.approx(math.sqrt(12.5))


def test_fair_coverage():
    """A truth of the members' own law lies within the fair band as often as it says."""
    x = torch.randn(21, 20000)
    members, truth = x[:20], x[20]
    assert coverage(members, truth, 0.8, fair=True) == pytest.approx(0.8, abs=0.015)
    assert coverage(members, truth, 0.8) == pytest.approx(0.8 * 19 / 21, abs=0.015)
    with pytest.raises(ValueError, match=r"level 0\.9 needs at least 19 members, got 18"):
        coverage(members[:18], truth, fair=True)
    coverage(members[:19], truth, fair=True)
    with pytest.raises(ValueError, match=r"level 1e-10 needs at least 2 members, got 1"):
        coverage(members[:1], truth, 1e-10, fair=True)


@pytest.mark.parametrize(("N", "level"), [(19, 0.9), (39, 0.9), (32, 0.9), (8, 0.7), (10, 0.6)])
@pytest.mark.parametrize("law", ["uniform", "exponential", "cauchy"])
def test_fair_coverage_of_any_law(law: str, N: int, level: float):
    """It is exact where the edges are members, and of uniform laws; within 2 / (N + 1) of others.
    The statistical error of 40,000 truths, each with members of its own, is below 0.0025."""
    u = torch.rand(N + 1, 40_000, generator=Generator().manual_seed(0)).double()
    draw = {"uniform": u, "exponential": -torch.log1p(-u), "cauchy": ((u - 0.5) * math.pi).tan()}
    error = coverage(draw[law][1:], draw[law][0], level, fair=True) - level
    rank = (1 - level) * (N + 1) / 2
    exact = law == "uniform" or rank == pytest.approx(round(rank))
    assert abs(error) < 0.0125 + (0 if exact else 2 / (N + 1))
