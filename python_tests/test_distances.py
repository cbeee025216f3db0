"""Distances between ensembles, against closed forms, other algorithms and literal sums."""

import math
import sys

import pytest
import torch
from torch import Tensor

from sda_fast.evaluation import energy_distance, mmd, wasserstein

stats = pytest.importorskip("scipy.stats")
optimize = pytest.importorskip("scipy.optimize")


def w2(x: Tensor, y: Tensor) -> float:
    return wasserstein(x, y, p=2)


def biased_mmd(x: Tensor, y: Tensor) -> float:
    return mmd(x, y, unbiased=False)


ALL = pytest.mark.parametrize("distance", [wasserstein, w2, energy_distance, mmd, biased_mmd])


@ALL
def test_order_does_not_matter(distance):
    x, y = torch.randn(40, 5, 3), 1 + torch.randn(30, 5, 3)
    expected = distance(x, y)
    assert distance(x[torch.randperm(40)], y[torch.randperm(30)]) == pytest.approx(expected)
    assert distance(y, x) == pytest.approx(expected)
    order = torch.randperm(15)
    assert distance(x.flatten(1)[:, order], y.flatten(1)[:, order]) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [wasserstein, w2, energy_distance, biased_mmd])
def test_equal_sets_are_at_distance_zero(distance):
    x = torch.randn(50, 7, 3)
    assert distance(x, x[torch.randperm(50)]) == pytest.approx(0, abs=1e-12)
    assert distance(x, 0.9 * x) > 1e-3


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_is_the_best_assignment(p: int):
    x, y = torch.randn(60, 4, 3), 0.5 + torch.randn(60, 4, 3)
    cost = torch.tensor([[float((a - b).double().norm()) ** p for b in y] for a in x])
    expected = float(cost.double().numpy()[optimize.linear_sum_assignment(cost.numpy())].mean())
    assert wasserstein(x, y, p) == pytest.approx(expected ** (1 / p), rel=1e-5)


def test_wasserstein_in_one_dimension():
    x, y = torch.randn(70), 2 * torch.randn(50)
    expected = stats.wasserstein_distance(x.double().numpy(), y.double().numpy())
    assert wasserstein(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_has_the_units_of_the_state(p: int):
    """It is exact at any scale: where all members are near, or far, or one and the same."""
    x, y = torch.randn(40, 5).double(), 0.1 + torch.randn(30, 5).double()
    expected = wasserstein(x, y, p)
    for scale in (10.0**k for k in range(-20, 21, 2)):
        assert wasserstein(scale * x, scale * y, p) == pytest.approx(
            scale * expected, rel=1e-9, abs=0
        )
    assert wasserstein(torch.ones(5, 3), torch.ones(4, 3), p) == 0


def test_wasserstein_of_gaussians():
    """W2 of N(m, s^2) and N(m', s'^2) is ((m - m')^2 + (s - s')^2)^(1/2)."""
    grid = torch.from_numpy(stats.norm.ppf((torch.arange(500) + 0.5).numpy() / 500))
    assert w2(grid, 1 + 2 * grid) == pytest.approx(math.sqrt(2), rel=1e-2)
    shift = torch.tensor([3.0, 4.0])
    x = torch.randn(64, 2)
    assert w2(x, x + shift) == pytest.approx(5, rel=1e-6)
    assert wasserstein(x, x + shift) == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("unbiased", [False, True])
def test_energy_distance_is_its_sums(unbiased: bool):
    x, y = torch.randn(12, 2, 3).double(), 1 + torch.randn(9, 2, 3).double()

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        pairs = [
            float((a[i] - b[j]).norm())
            for i in range(len(a))
            for j in range(len(b))
            if not (same and unbiased and i == j)
        ]
        return sum(pairs) / len(pairs)

    expected = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    assert energy_distance(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-10)


def test_energy_distance_in_one_dimension():
    x, y = torch.randn(70), 2 * torch.randn(50)
    expected = stats.energy_distance(x.double().numpy(), y.double().numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_energy_distance_of_gaussians():
    """N(0, 1) and N(d, 1): X - Y is N(-d, 2), whose mean modulus is that of the folded normal."""
    grid = torch.from_numpy(stats.norm.ppf((torch.arange(4000) + 0.5).numpy() / 4000))
    expected = 2 * stats.foldnorm(1 / math.sqrt(2), scale=math.sqrt(2)).mean() - 4 / math.sqrt(
        math.pi
    )
    assert energy_distance(grid, grid + 1) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_is_its_sums(unbiased: bool):
    x, y, h = torch.randn(11, 2, 3).double(), 1 + torch.randn(8, 2, 3).double(), 1.7

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        pairs = [
            math.exp(-float((a[i] - b[j]).square().sum()) / (2 * h**2))
            for i in range(len(a))
            for j in range(len(b))
            if not (same and unbiased and i == j)
        ]
        return sum(pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert mmd(x, y, bandwidth=h, unbiased=unbiased) == pytest.approx(expected, rel=1e-10)

    both = torch.cat((x, y)).flatten(1)
    median = float(torch.nn.functional.pdist(both).median())
    default = mmd(x, y, unbiased=unbiased)
    assert default == pytest.approx(mmd(x, y, bandwidth=median, unbiased=unbiased), rel=1e-10)


def test_unbiased():
    """Between draws of one law the mean is zero, within five standard errors; the biased is not."""
    for distance in (energy_distance, mmd):
        pairs = [(torch.randn(20, 2), torch.randn(20, 2)) for _ in range(200)]
        for unbiased in (True, False):
            kwargs = {"bandwidth": 1.5} if distance is mmd else {}
            values = torch.tensor([distance(x, y, unbiased=unbiased, **kwargs) for x, y in pairs])
            error = 5 * float(values.std()) / len(values) ** 0.5
            assert (abs(float(values.mean())) < error) == unbiased


@ALL
def test_errors(distance):
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"of one shape, but have shapes \(5, 3\) and \(5, 2\)"):
        distance(x, x[:, :2])
    with pytest.raises(ValueError, match="y must be finite"):
        distance(x, x / 0)
    with pytest.raises(ValueError, match=r"x must have \d or more members, but has 0"):
        distance(x[:0], x)


def test_arguments():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match="p must be 1 or 2, but is 3"):
        wasserstein(x, x, 3)
    with pytest.raises(ValueError, match="bandwidth must be positive, but is 0"):
        mmd(torch.ones(5, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match="x must have 2 or more members, but has 1"):
        energy_distance(x[:1], x, unbiased=True)


def test_wasserstein_without_pot(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"needs POT: pip install 'sda-fast\[evaluation\]'"):
        wasserstein(torch.randn(5, 3), torch.randn(5, 3))
