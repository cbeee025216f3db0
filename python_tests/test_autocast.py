"""Within torch.autocast: the network is evaluated so, and all else in the state's own type."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, GaussianScore, MCScoreNet, Spectrum, explain, ops, sample
from sda_fast._autocast import exact, is_on, widened

SHAPE = (9, 3)


@pytest.fixture
def network() -> MCScoreNet:
    kernel = {"hidden_features": [32], "activation": nn.SiLU}
    return MCScoreNet(3, order=1, **kernel).requires_grad_(False)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("law", ["prior", "guided", "detached", "covariance"])
def test_samples(network: MCScoreNet, law: str, foreign: bool, backend: str):
    def estimator(x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        y = network.kernel(ops.gather(x, plan.start, plan.mask), t)
        narrow.append(y.dtype)
        return ops.compose(y, plan.start, plan.weight, 9)

    def matrix(x: Tensor) -> Tensor:
        y = x[:, ::2] @ torch.ones(3, 3)
        observed.append(y.dtype)
        return y

    plan = network.plan(9)
    narrow: list[torch.dtype] = []
    observed: list[torch.dtype] = []
    process = VPSDE(estimator if foreign else network, shape=SHAPE)
    if law != "prior":
        vectors = torch.linalg.qr(torch.randn(27, 4)).Q.reshape(9, 3, 4)
        gamma = Spectrum(vectors, torch.rand(4)) if law == "covariance" else 0.1
        guided = GaussianScore(
            torch.zeros(5, 3), matrix, 1.0, process, gamma=gamma, detach=law == "detached"
        )
        process = VPSDE(guided, shape=SHAPE)

    options: dict[str, Any] = {"steps": [0.5, 0.4, 0.3], "x1": torch.randn(2, *SHAPE)}
    options |= {"corrections": 1, "tau": 0.1, "seed": 0, "backend": backend}
    expected = sample(process, (2,), **options)
    narrow.clear()
    with torch.autocast("cpu", torch.bfloat16):
        result = sample(process, (2,), **options)
        assert foreign or backend != "auto" or "autocast is on" in str(explain(process))

    assert set(narrow) == ({torch.bfloat16} if foreign else set())
    assert set(observed) == (set() if law == "prior" else {torch.float32})
    assert result.dtype == torch.float32
    assert not torch.equal(result, expected)
    assert (result - expected).norm() < 2e-2 * expected.norm()


def test_devices_without_it():
    x = torch.empty(2, device="meta")
    assert widened(x, x) is x
    with exact(x):
        assert not is_on(x)


def test_network(network: MCScoreNet):
    x, t = torch.randn(2, *SHAPE), torch.tensor(0.5)
    expected, pull = network.linearise(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        noise, narrow_pull = network.linearise(x, t)
        assert torch.equal(network(x, t), noise)
        assert torch.equal(network(x.clone().requires_grad_(), t), noise)
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(narrow_pull(noise), pull(noise), rtol=2e-2, atol=2e-2)
