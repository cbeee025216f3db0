"""Samples with corrections against a plain loop with torch's own noise: the same distribution.

Two-sample Kolmogorov-Smirnov tests on projections, at a level of 1e-4 for all together. Seeds are
fixed, and each test also shows that it would notice: with another tau the samples differ.
"""

import oracles
import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, GaussianScore, load_prior, sample
from sda_fast.evaluation import Gaussian, GaussianEstimator

stats = pytest.importorskip("scipy.stats")

LEVEL = 1e-4
OPTIONS = {"steps": 6, "corrections": 3, "tau": 0.3}


def literal(eps: oracles.Estimator, x: Tensor) -> Tensor:
    """Samples by the formulas, with noise of torch's generator."""
    steps, tau = OPTIONS["steps"], OPTIONS["tau"]
    dims = tuple(range(1, x.ndim))
    for n in range(1, steps + 1):
        (mu0, sigma0), (mu, sigma) = (
            oracles.levels("VPSDE", "cos", 1 - m / steps) for m in (n - 1, n)
        )
        r = mu / mu0
        x = r * x + (sigma - r * sigma0) * eps(x, 1 - (n - 1) / steps)
        for _ in range(OPTIONS["corrections"]):
            e = eps(x, 1 - n / steps)
            delta = tau / e.square().mean(dim=dims, keepdim=True)
            x = x - sigma * (delta * e + (2 * delta).sqrt() * torch.randn_like(x))
    return x


def smallest(a: Tensor, b: Tensor, projections: int = 24) -> float:
    """Returns the smallest p-value of many projections, and of the norm, times their number."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    directions = torch.randn(a.shape[1], projections, dtype=torch.float64)
    directions = torch.cat((directions, torch.eye(a.shape[1], dtype=torch.float64)), dim=1)
    mean = b.mean(dim=0)
    pairs = [*zip((a @ directions).T, (b @ directions).T, strict=True)]
    pairs.append(((a - mean).norm(dim=1), (b - mean).norm(dim=1)))
    return len(pairs) * min(float(stats.ks_2samp(u, v).pvalue) for u, v in pairs)


def linear_gaussian(guided: bool) -> tuple[VPSDE, oracles.Estimator, int]:
    n = 8
    root = torch.randn(n, n, dtype=torch.float64)
    prior = Gaussian(torch.randn(n, dtype=torch.float64), root @ root.T / n)
    sde = VPSDE(nn.Identity(), (n,)).double()
    sde.eps = GaussianEstimator(prior, sde)
    if guided:
        y = torch.ones(4, dtype=torch.float64)
        guidance = GaussianScore(y, lambda x: x[..., ::2], 0.5, sde, gamma=0.5)
        sde = VPSDE(guidance, (n,)).double()
    return sde, lambda x, t: sde.eps(x, torch.tensor(t, dtype=torch.float64)), 4000


def lorenz(guided: bool) -> tuple[VPSDE, oracles.Estimator, int]:
    prior = load_prior("lorenz63", length=9)
    guidance = GaussianScore(torch.ones(5, 1), lambda x: x[..., ::2, :1], 0.5, prior, gamma=0.1)
    sde = VPSDE(guidance, prior.shape) if guided else prior
    return sde, lambda x, t: sde.eps(x, torch.tensor(t)), 600 if guided else 1500


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("problem", [linear_gaussian, lorenz])
def test_same_distribution(problem, guided: bool):
    sde, eps, number = problem(guided)
    x = sample(sde, (number,), seed=1, **OPTIONS)
    with torch.no_grad():
        expected = literal(eps, torch.randn_like(x))
    other = sample(sde, (number,), seed=1, **OPTIONS | {"tau": 0.05})

    assert smallest(x, expected) > LEVEL
    assert smallest(other, expected) < LEVEL
