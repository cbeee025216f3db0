"""Networks with other parameters than their own, by torch.func: the module computes. And operators
in forward mode: the reference does."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, stack_module_state, vmap

from sda_fast import MCScoreNet, ops
from sda_fast.fused import FusedMLP, Packed
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


X, Y, Z = torch.randn(3, 2, 5, 3, 4)  # fields, and trajectories with windows of 3
START, PLAN = torch.arange(3), torch.ones(3, 3, dtype=torch.int8)
HALF = torch.tensor(0.5)
ROW, COLUMN = torch.tensor([0, 2, 3]), torch.tensor([1, 4, 0])
OPERATORS: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "gather": (lambda x: ops.gather(x, START, PLAN), (X,)),
    "compose": (lambda x: ops.compose(x, START, PLAN, 5), (torch.randn(2, 3, 9, 4),)),
    "denoise": (lambda x, eps: ops.denoise(x, eps, 0.8, 0.6), (X, Y)),
    "predictor": (lambda x, eps: ops.predictor(x, eps, 0.8, 0.6), (X, Y)),
    "multistep": (lambda x, a, b: ops.multistep(x, [a, b], 0.8, [0.5, 0.2]), (X, Y, Z)),
    "guide": (lambda eps, g, h: ops.guide(eps, g, h, 0.8, 0.6), (X, Y, Z)),
    "langevin": (lambda x, eps: ops.langevin(x, eps, 0.8, 0.5, seed=1, step=2), (X, Y)),
    "subsample": (lambda x: ops.subsample(x, [1], [2], [2]), (X,)),
    "block_mean": (lambda x: ops.block_mean(x, [3, 2]), (X,)),
    "sparse_map": (
        lambda x, value: ops.sparse_map(x, ROW, COLUMN, value),
        (torch.randn(2, 6), torch.randn(3)),
    ),
    "residual": (
        lambda y, x: ops.residual(y, x, torch.tensor(0.5), torch.tensor(0.1), 0.7),
        (X, Y),
    ),
    "norm_pad": (lambda x, s: ops.norm_pad(x, s, (1, 2))[0], (X, torch.randn(2, 5))),
    "norm_pad_vjp": (
        lambda g, r: ops.norm_pad_vjp(g, Z, torch.ones(2, 3, 4), r, (1, 2)),
        (X, Y),
    ),
    "activation_pad": (lambda x, b: ops.activation_pad(x, 3, (1, 2), b), (X, torch.randn(5))),
    "activation_pad_vjp": (
        lambda g, x, b: ops.activation_pad_vjp(g, x, 3, (1, 2), b),
        (X, Y, torch.randn(5)),
    ),
}


@pytest.mark.parametrize(
    ("name", "n"), [(name, n) for name, (_, given) in OPERATORS.items() for n in range(len(given))]
)
def test_operators_in_forward_mode(name: str, n: int):
    """Of each argument by itself: none is left out, whichever is asked first."""
    f, given = OPERATORS[name]

    def of(x: Tensor) -> Tensor:
        return f(*given[:n], x, *given[n + 1 :])

    direction = torch.randn_like(given[n])
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(of(forward_ad.make_dual(given[n], direction))).tangent
    assert tangent is not None
    with ops.backend("reference"):
        _, expected = jvp(of, (given[n],), (direction,))
    torch.testing.assert_close(tangent, expected)
    assert float(expected.abs().max()) > 0.1


def test_the_fused_network_in_forward_mode():
    """It has no reference to leave that to, and says so: the network that it is of does."""
    network = MCScoreNet(3, order=1, hidden_features=[16] * 2).requires_grad_(False)
    fused, plan, x = FusedMLP(network, Packed()), network.plan(7), torch.randn(2, 7, 3)
    for evaluate in (fused, fused.linearise):
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
            evaluate(forward_ad.make_dual(x, x), torch.tensor(0.3), None, plan)
