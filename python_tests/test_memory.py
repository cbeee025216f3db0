"""What memory a plan tells of, and how many windows are evaluated at once where the user does not
say."""

from functools import partial
from typing import Any

import pytest
import torch
from test_costs import changes, peak_bytes
from torch import nn

from sda_fast import (
    VPSDE,
    GaussianScore,
    MCScoreNet,
    MCScoreWrapper,
    ScoreUNet,
    explain,
    ops,
    sample,
)
from sda_fast.observation import Subsample
from sda_fast.sampler import memory

FREE = 1 << 23


def vectors() -> MCScoreNet:
    return MCScoreNet(3, order=2, embedding=8, hidden_features=[64] * 3, activation=nn.Tanh)


def fields() -> MCScoreNet:
    hidden: dict[str, Any] = {"hidden_channels": (8, 16), "hidden_blocks": (1, 1)}
    return MCScoreNet(2, order=2, embedding=8, activation=nn.SiLU, spatial=2, **hidden)


CASES = [(vectors, (3,)), (fields, (2, 8, 8))]


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: FREE)


def evaluate(network: Any, x: torch.Tensor, gradient: bool) -> None:
    with ops.backend("reference"), torch.set_grad_enabled(gradient):
        x = x.requires_grad_(gradient)
        eps = network.kernel(x, torch.tensor(0.5), None)
        if gradient:
            torch.autograd.grad(eps.sum(), x)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("make", "state"), CASES)
def test_windows_that_fit(make: Any, state: tuple[int, ...], gradient: bool) -> None:
    """So many take no more than the memory that is free, and no less than a tenth of it."""
    network = make().requires_grad_(False)
    count = memory.windows_that_fit(network, torch.empty(0, 9, *state), gradient)
    x = torch.randn(count, 5 * state[0], *state[1:])
    peak = peak_bytes(changes(partial(evaluate, network, x, gradient))[0])
    assert FREE / 10 < peak < FREE


@pytest.mark.parametrize(("make", "state"), CASES)
def test_tried_once(make: Any, state: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is tried once, however often it draws and whatever it learns meanwhile, and again
    of another shape or precision. The plan says how many windows it is given."""
    trials = []
    trial = memory._try
    monkeypatch.setattr(memory, "_try", lambda *args: trials.append(args) or trial(*args))
    network = make().requires_grad_(False)
    sde = VPSDE(network, (40, *state))

    def draw(**options: Any) -> torch.Tensor:
        return sample(sde, (64,), steps=1, backend="reference", **options)

    for _ in range(2):
        assert draw().isfinite().all()
        next(network.parameters()).mul_(0.5)
    assert len(trials) == 1
    fit = memory.windows_that_fit(network, torch.empty(0, 40, *state), False)
    assert f"at most {fit} windows at once" in str(explain(sde, (4000,), backend="reference"))

    network.double()
    draw(dtype=torch.float64)
    assert len(trials) == 2
    other = make().requires_grad_(False)
    memory.windows_that_fit(other, torch.empty(0, 40, *state), True)
    memory.windows_that_fit(other, torch.empty(0, 40, *state), False)
    assert len(trials) == 4  # of each other


def relu() -> MCScoreNet:
    return MCScoreNet(3, order=2, embedding=8, hidden_features=[64] * 3)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("make", "state"), [*CASES, (relu, (3,))])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_planned_memory(make: Any, state: tuple[int, ...], guided: bool, backend: str) -> None:
    """It is what a run takes, but for what the library's convolutions have of their own."""
    batch, length = 3, 100
    network = make().requires_grad_(False)
    sde = VPSDE(network, (length, *state))
    if guided:
        A = Subsample(sde.shape, slice(None, None, 8))
        sde = VPSDE(GaussianScore(torch.zeros(A.shape), A, 1.0, sde), sde.shape)
    options: dict[str, Any] = {"steps": 3, "corrections": 1, "order": 2, "backend": backend}
    plan = explain(sde, (batch,), **options)
    assert plan.network_bytes is not None
    told = plan.state_bytes + plan.network_bytes
    with ops.backend(backend):
        fused = network.fused(torch.empty(0, length, *state))
    if not isinstance(fused, str):  # has memory of its own, of which test_costs.py has a test
        told = plan.state_bytes
    peak = peak_bytes(changes(partial(sample, sde, (batch,), **options))[0])
    assert 0.65 * told < peak < 1.5 * told + 2**16  # and the embedding of the times


def test_planned_memory_of_whole_trajectories() -> None:
    """So is that of a network that is not composed."""
    unet = ScoreUNet(3, embedding=8, hidden_channels=(16,), hidden_blocks=(2,), spatial=1)
    sde = VPSDE(MCScoreWrapper(unet).requires_grad_(False), (64, 3))
    plan = explain(sde, (20,), backend="reference")
    assert plan.network_bytes is not None
    run = partial(sample, sde, (20,), steps=2, backend="reference")
    assert 0.65 < peak_bytes(changes(run)[0]) / (plan.state_bytes + plan.network_bytes) < 1.5


def test_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the free memory is unknown, or the network cannot be tried, all go at once."""
    network = vectors().requires_grad_(False)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda device: None)
        assert memory.windows_that_fit(network, torch.empty(0, 9, 3), False) is None

    class Own(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, c: Any = None) -> torch.Tensor:
            assert x.device.type == "cpu"
            return 0.1 * x

    own = vectors()
    own.kernel = Own()
    assert memory.windows_that_fit(own, torch.empty(0, 9, 3), False) is None
    sde = VPSDE(own, (9, 3))
    assert explain(sde, (2,)).network_bytes is None
    assert "what the network takes beside" in str(explain(sde, (2,)))
    assert sample(sde, (2,), steps=1).isfinite().all()
