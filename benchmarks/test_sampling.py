"""Times whole posteriors, `sda_fast.sample` against the loop of the published code.

The loop is written out here, in eager PyTorch with torch's own random numbers, and calls the same
network and guidance. A run is 8 steps; time is proportional to the steps.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, GaussianScore, MCScoreNet, ops, sample

STEPS, TAU = 8, 0.5


def published(sde: VPSDE, shape: tuple[int, ...], corrections: int) -> Tensor:
    """The published sampler (Rozet & Louppe, 2023, algorithm 4)."""
    x = torch.randn(*shape, *sde.shape)
    time, dt = torch.linspace(1, 0, STEPS + 1), 1 / STEPS

    with torch.no_grad():
        for t in time[:-1]:
            r = sde.mu(t - dt) / sde.mu(t)
            x = r * x + (sde.sigma(t - dt) - r * sde.sigma(t)) * sde.eps(x, t)
            for _ in range(corrections):
                z = torch.randn_like(x)
                eps = sde.eps(x, t - dt)
                delta = TAU / eps.square().mean(dim=sde.dims, keepdim=True)
                x = x - (delta * eps + torch.sqrt(2 * delta) * z) * sde.sigma(t - dt)

    return x


@pytest.fixture(params=["sda_fast", "sda_fast bfloat16", "published"])
def code(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which code runs; in bfloat16 are the factors of the network's matrix products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if "bfloat16" in request.param else "highest")
    yield request.param
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("corrections", [1, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("batch", [1, 16, 128])
def test_lorenz63_posterior(benchmark, batch: int, corrections: int, code: str):
    torch.manual_seed(0)
    network = MCScoreNet(3, order=2, embedding=32, hidden_features=[256] * 5, activation=nn.SiLU)
    prior = VPSDE(network.requires_grad_(False), shape=(65, 3))
    guided = GaussianScore(torch.zeros(9, 1), lambda x: x[..., ::8, :1], 0.05, prior, gamma=3e-2)
    sde = VPSDE(guided, shape=(65, 3))

    threads = torch.get_num_threads()
    benchmark.group = f"Lorenz-63 posterior, B = {batch}, C = {corrections} ({threads} threads)"
    rounds = {"rounds": 3, "warmup_rounds": 1}

    if code != "published":
        options = {"steps": STEPS, "corrections": corrections, "tau": TAU, "backend": "native"}
        benchmark.pedantic(lambda: sample(sde, (batch,), **options), **rounds)
    else:
        with ops.backend("reference"):
            benchmark.pedantic(lambda: published(sde, (batch,), corrections), **rounds)
