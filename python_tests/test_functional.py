"""Networks with other parameters than their own, by torch.func: the module computes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap

from sda_fast import MCScoreNet
from sda_fast.score import ScoreUNet

T = torch.tensor(0.5)


def make(kind: str) -> MCScoreNet:
    options: dict[str, Any] = {"order": 1, "activation": nn.SiLU, "embedding": 8}
    if kind == "mlp":
        return MCScoreNet(3, hidden_features=[16], **options).requires_grad_(False)
    options |= {"spatial": 2, "hidden_channels": (4, 8), "hidden_blocks": (1, 1)}
    network = MCScoreNet(2, kernel_size=3, padding_mode="circular", **options)
    return network.requires_grad_(False)


def states(kind: str) -> Tensor:
    return torch.randn(2, 5, 3) if kind == "mlp" else torch.randn(2, 5, 2, 8, 8)


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_ensembles(kind: str):
    members, x = [make(kind) for _ in range(3)], states(kind)
    state = stack_module_state(members)
    base = make(kind)
    result = vmap(lambda *state: functional_call(base, state, (x, T)))(*state)
    expected = torch.stack([member(x, T) for member in members])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_tangents_of_parameters(kind: str, grad: bool):
    network, x = make(kind), states(kind)
    parameters = dict(network.named_parameters())
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def evaluate(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(network, parameters, (x, T))

    with torch.set_grad_enabled(grad):
        _, tangent = jvp(evaluate, (parameters,), (directions,))

    exact, h = copy.deepcopy(network).double(), 1e-5
    ends = []
    for sign in (1, -1):
        moved = {name: p.double() + sign * h * directions[name] for name, p in parameters.items()}
        ends.append(functional_call(exact, moved, (x.double(), T.double())))
    expected = (ends[0] - ends[1]) / (2 * h)
    assert (tangent - expected).norm() < 1e-4 * expected.norm()


def test_an_embedding_that_learns_alone():
    network, x = make("unet"), states("unet")
    assert isinstance(network.kernel, ScoreUNet)
    network.kernel.embedding.requires_grad_(True)
    network(x, T).sum().backward()
    assert all(p.grad is not None for p in network.kernel.embedding.parameters())
