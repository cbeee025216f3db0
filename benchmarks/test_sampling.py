"""Times whole posteriors, `sda_fast.sample` against the published method in eager PyTorch.

Both evaluate the same network as often. A run is 8 steps; time is proportional to the steps.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sda_fast import VPSDE, GaussianScore, MCScoreNet, sample
from sda_fast.observation import Subsample

from .published import Composed, Guided, posterior

STEPS, TAU = 8, 0.5
SHAPE = (65, 3)


@pytest.fixture(params=["sda_fast", "sda_fast bfloat16", "published"])
def code(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which code runs; in bfloat16 are the factors of the network's matrix products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if "bfloat16" in request.param else "highest")
    yield request.param
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("corrections", [1, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_lorenz63_posterior(benchmark, batch: int, corrections: int, code: str):
    torch.manual_seed(0)
    network = MCScoreNet(3, order=2, embedding=32, hidden_features=[256] * 5, activation=nn.SiLU)
    prior = VPSDE(network.requires_grad_(False), shape=SHAPE)
    y = torch.zeros(9, 1)

    threads = torch.get_num_threads()
    benchmark.group = f"Lorenz-63 posterior, B = {batch}, C = {corrections} ({threads} threads)"
    rounds = {"rounds": 3, "warmup_rounds": 1}
    options = {"steps": STEPS, "corrections": corrections, "tau": TAU}

    if code == "published":
        composed = SimpleNamespace(
            eps=Composed(network.kernel, network.order), mu=prior.mu, sigma=prior.sigma
        )
        guided = Guided(y, lambda x: x[..., ::8, :1], 0.05, composed, 3e-2)
        sde = SimpleNamespace(eps=guided, mu=prior.mu, sigma=prior.sigma, shape=SHAPE)
        benchmark.pedantic(lambda: posterior(sde, (batch,), **options), **rounds)
    else:
        A = Subsample(SHAPE, slice(None, None, 8), slice(0, 1))
        sde = VPSDE(GaussianScore(y, A, 0.05, prior, gamma=3e-2), SHAPE)
        benchmark.pedantic(lambda: sample(sde, (batch,), backend="native", **options), **rounds)


def test_same_estimate():
    """Both estimate the same noise."""
    network = MCScoreNet(3, order=2, hidden_features=[32], activation=nn.SiLU)
    prior = VPSDE(network.requires_grad_(False), shape=SHAPE)
    y, x, t = torch.zeros(9, 1), torch.randn(2, *SHAPE), torch.tensor(0.4)
    composed = SimpleNamespace(
        eps=Composed(network.kernel, network.order), mu=prior.mu, sigma=prior.sigma
    )
    A = Subsample(SHAPE, slice(None, None, 8), slice(0, 1))
    ours = GaussianScore(y, A, 0.05, prior, gamma=3e-2)(x, t)
    theirs = Guided(y, lambda x: x[..., ::8, :1], 0.05, composed, 3e-2)(x, t)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
