"""Kernels that are told a forcing, and that estimate a velocity."""

import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, ForcedScoreUNet, MCScoreNet, ScoreUNet
from sda_fast.io import build_network
from sda_fast.kernels import VelocityKernel, kolmogorov_forcing

SIZE = {"embedding": 8, "hidden_channels": [4, 6], "hidden_blocks": [1, 1], "spatial": 2}


def test_forcing():
    """sin(k y) at the centres of cells; y is the last dimension, as in the flow."""
    forcing = kolmogorov_forcing(8, 1)
    assert forcing.shape == (1, 8, 8)
    y = 2 * torch.pi * (torch.arange(8.0) + 0.5) / 8
    torch.testing.assert_close(forcing, y.sin().expand(1, 8, 8))
    # its means over pairs of cells are those of a grid of half the points, smaller by cos(pi / 8)
    coarse = kolmogorov_forcing(16, 1).unflatten(2, (8, 2)).mean(3)[:, ::2]
    torch.testing.assert_close(coarse, forcing * torch.tensor(torch.pi / 16).cos())


@pytest.mark.parametrize("context", [0, 3])
def test_equals_a_unet_that_is_told(context: int):
    forcing = kolmogorov_forcing(8)
    network = ForcedScoreUNet(2, context, forcing=forcing, **SIZE)
    plain = ScoreUNet(2, context + 1, **SIZE)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k != "forcing"})

    x, t = torch.randn(5, 2, 8, 8), torch.rand(5)
    c = torch.randn(5, context, 8, 8) if context else None
    told = forcing.expand(5, 1, 8, 8)
    told = told if c is None else torch.cat((c, told), 1)
    assert torch.equal(network(x, t, c), plain(x, t, told))


@pytest.mark.parametrize("aware", [False, True])
def test_composed(aware: bool):
    network = build_network(
        {"features": 2, "order": 1, "length_aware": aware, "forcing": {"size": 8}, **SIZE}
    )
    told = MCScoreNet(2, 1, 1, length_aware=aware, **SIZE)
    state = network.state_dict()
    forcing = state.pop("kernel.forcing")
    if aware:  # there the mask comes last
        weight = state["kernel.network.heads.0.weight"]
        state["kernel.network.heads.0.weight"] = weight[:, [*range(6), 9, 6, 7, 8]]
        network.composition = told.composition = "junction"
    told.load_state_dict(state)
    x, t = torch.randn(2, 5, 2, 8, 8), torch.tensor(0.3)
    torch.testing.assert_close(network(x, t), told(x, t, forcing), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_levels_of_half_types(dtype: torch.dtype):
    """Levels near t = 0, of which a half type has no digit, are rounded only once."""

    class Zero(nn.Module):
        def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x)

    t = torch.tensor([0.01, 0.1, 0.9], dtype=dtype)
    x = torch.ones(3, 1, dtype=dtype)
    sigma = VPSDE(nn.Identity(), ()).sigma(t.double())
    torch.testing.assert_close(VelocityKernel(Zero())(x, t)[:, 0], sigma.to(dtype))


def test_another_grid():
    network = ForcedScoreUNet(2, forcing=kolmogorov_forcing(8), **SIZE)
    with pytest.raises(ValueError, match=r"grid of 8 x 8 cells, got shape \(1, 2, 16, 16\)"):
        network(torch.randn(1, 2, 16, 16), torch.rand(1))


@pytest.mark.parametrize(("alpha", "eta"), [("cos", 1e-3), ("lin", 1e-2)])
@pytest.mark.parametrize("space", [(), (4, 4)])
def test_velocity(alpha: str, eta: float, space: tuple[int, ...]):
    """With the true velocity mu eps - sigma x, the noise is the true one, at any time."""

    class Oracle(nn.Module):
        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return mu * eps - sigma * clean

    t = torch.rand(7, dtype=torch.float64)
    clean, eps = torch.randn(2, 7, 6, *space, dtype=torch.float64)
    sde = VPSDE(nn.Identity(), (), alpha, eta)
    mu, sigma = (f(t).reshape(7, *(1,) * (1 + len(space))) for f in (sde.mu, sde.sigma))
    kernel = VelocityKernel(Oracle(), alpha, eta)
    estimate = kernel(mu * clean + sigma * eps, t, None)
    torch.testing.assert_close(estimate, (1 + eta**2) * eps)


def test_velocity_of_a_composed_network():
    """It has the parameters of its network alone, and no time is dearer than another."""
    config = {"features": 3, "order": 1, "embedding": 8, "hidden_features": [8]}
    network = build_network(config | {"velocity": {"alpha": "cos", "eta": 1e-3}})
    plain = build_network(config)
    plain.load_state_dict({k.replace("score.", ""): v for k, v in network.state_dict().items()})
    x, t = torch.randn(2, 6, 3), torch.tensor(0.7)
    sde = VPSDE(plain, (6, 3))
    expected = sde.sigma(t) * x + sde.mu(t) * plain(x, t)
    torch.testing.assert_close(network(x, t), expected)
