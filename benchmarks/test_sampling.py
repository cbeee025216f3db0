"""Times whole samples, `sda_fast.sample` against the published method in eager PyTorch.

All evaluate the same network as often; before they are timed their noise estimates are compared.
A run is 8 steps; time is proportional to the steps. Where azula is installed, its sampler draws
from the prior too.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sda_fast import VPSDE

from .published import Composed
from .workloads import LENGTH, STATE, STEPS, mlp_network, posterior_runs

SLOW = pytest.mark.slow
COMPILED = pytest.param("compiled", marks=SLOW)
ROUNDS = {"rounds": 3, "warmup_rounds": 1}


@pytest.mark.parametrize("code", ["eager", COMPILED, "native", "native bfloat16"])
@pytest.mark.parametrize(
    ("batch", "corrections"),
    [(1, 1), (16, 1), pytest.param(256, 1, marks=SLOW), pytest.param(16, 16, marks=SLOW)],
)
@pytest.mark.parametrize("law", ["prior", "posterior"])
def test_lorenz63(timed, law: str, batch: int, corrections: int, code: str):
    runs = posterior_runs(batch, corrections=corrections, guided=law == "posterior")
    group = f"Lorenz-63 {law}, B = {batch}, C = {corrections}"
    timed(group, code, runs[code.removesuffix(" bfloat16")], **ROUNDS)


@pytest.mark.parametrize("batch", [1, 16, pytest.param(256, marks=SLOW)])
def test_lorenz63_azula(timed, batch: int):
    """The predictor-corrector sampler of azula, with the same network, steps and evaluations."""
    timed(f"Lorenz-63 prior, B = {batch}, C = 1", "azula", azula_run(batch), **ROUNDS)


def azula_run(batch: int) -> Callable[[], Tensor]:
    denoise = pytest.importorskip("azula.denoise")
    samplers = pytest.importorskip("azula.sample")

    network = mlp_network(256)
    sde, eps = VPSDE(network, shape=(LENGTH, STATE)), Composed(network.kernel, network.order)

    class Denoiser(denoise.Denoiser):  # type: ignore[misc, name-defined]
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return sde.mu(t), sde.sigma(t)

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            mu, sigma = self.schedule(t)
            return denoise.DiracPosterior(mean=(x - sigma * eps(x, t)) / mu)

    sampler = samplers.PCSampler(Denoiser(), corrections=1, delta=0.1, steps=STEPS, silent=True)
    x = torch.randn(batch, LENGTH, STATE)
    assert sampler(x).isfinite().all()
    return lambda: sampler(x)
