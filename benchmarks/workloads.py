"""The networks and runs that are timed, the same on every device.

Width 256, depth 5, windows of 5 states, trajectories of 65: the paper's Lorenz-63 network; and
U-Nets on windows of two-dimensional fields.
"""

__all__ = [
    "Score",
    "count_flops",
    "matmul_precision",
    "mlp_network",
    "mlp_score",
    "posterior_runs",
    "relative_error",
    "unet_network",
    "unet_score",
]

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sda_fast import VPSDE, GaussianScore, MCScoreNet, ScoreUNet, sample
from sda_fast.observation import Subsample

from .published import Composed, Guided, posterior

STEPS, TAU = 8, 0.5
LENGTH, STATE = 65, 3
OBSERVED = (slice(None, None, 8), slice(0, 1))


def relative_error(x: Tensor, expected: Tensor) -> float:
    """Returns the relative error in norm."""
    x, expected = x.detach().double(), expected.detach().double()
    return float((x - expected).norm() / expected.norm())


class _Flops(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(run: Callable[[], object]) -> int:
    """Counts the floating-point operations of the matrix products and convolutions of a run."""
    with _Flops() as counter:
        run()
    return counter.total


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Sets the precision of float32 matrix products for a `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Score:
    """A score network with arguments.

    Arguments:
        network: The network as it was published, eager.
        x: Its states.
        cotangent: What is multiplied with its Jacobian.
        others: Other codes of the same network, by name: functions of states and times.
    """

    network: nn.Module
    x: Tensor
    cotangent: Tensor
    others: dict[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)

    def forward(self, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return network(self.x, self.t)

    def vjp(self, network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            x = self.x.detach().requires_grad_()
            return torch.autograd.grad(network(x, self.t), x, self.cotangent)[0]

    @cached_property
    def t(self) -> Tensor:
        return torch.tensor(0.5, device=self.x.device)

    @cached_property
    def flops(self) -> dict[str, int]:
        """The operations of the forward pass, and of it with the vector-Jacobian product."""
        return {
            "forward": count_flops(lambda: self.forward(self.network)),
            "vjp": count_flops(lambda: self.vjp(self.network)),
        }

    def codes(self, compiler: str = "inductor") -> dict[str, dict[str, Callable[[], Tensor]]]:
        """Returns what to time: for either kind of work functions by the name of the code."""
        networks: dict[str, Any] = {"eager": self.network}
        networks["compiled"] = torch.compile(self.network, dynamic=False, backend=compiler)
        networks |= self.others
        return {
            "forward": {c: lambda n=n: self.forward(n) for c, n in networks.items()},
            "vjp": {c: lambda n=n: self.vjp(n) for c, n in networks.items()},
        }


def mlp_network(width: int, device: str = "cpu") -> MCScoreNet:
    """Makes the window MLP, without gradients of its parameters."""
    network = MCScoreNet(
        STATE, order=2, embedding=32, hidden_features=[width] * 5, activation=nn.SiLU
    )
    return network.requires_grad_(False).to(device)


def mlp_score(batch: int, width: int, device: str = "cpu") -> Score:
    """Makes the window MLP composed over trajectories."""
    network = mlp_network(width, device)
    x, cotangent = torch.randn(2, batch, LENGTH, STATE, device=device)
    return Score(Composed(network.kernel, network.order), x, cotangent)


def unet_network(channels: tuple[int, ...] = (32, 64, 128)) -> ScoreUNet:
    """Makes a U-Net for windows of five states of two channels, on a periodic domain."""
    return ScoreUNet(
        10,
        embedding=64,
        hidden_channels=channels,
        hidden_blocks=(2,) * len(channels),
        activation=nn.SiLU,
        padding_mode="circular",
    )


def unet_score(
    windows: int, side: int, channels: tuple[int, ...] = (32, 64, 128), device: str = "cpu"
) -> Score:
    """Makes the U-Net with fields; another code of it is in bfloat16, channels last."""
    network = unet_network(channels).requires_grad_(False).to(device)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def half(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return last(x.to(memory_format=torch.channels_last), t)

    x, cotangent = torch.randn(2, windows, 10, side, side, device=device)
    return Score(network, x, cotangent, {"channels last, bfloat16": half})


def posterior_runs(
    batch: int,
    width: int = 256,
    device: str = "cpu",
    *,
    corrections: int = 1,
    guided: bool = True,
    compiler: str = "inductor",
) -> dict[str, Callable[[], Tensor]]:
    """Returns functions that draw samples with the same network, steps and evaluations: ours, and
    the published loop in eager PyTorch and with its network compiled.

    Raises:
        ArithmeticError: Their noise estimates differ.
    """
    network = mlp_network(width, device)
    prior = VPSDE(network, shape=(LENGTH, STATE)).to(device)
    y = torch.zeros(9, 1, device=device)
    options: dict[str, Any] = {"steps": STEPS, "corrections": corrections, "tau": TAU}

    ours = prior
    if guided:
        A = Subsample((LENGTH, STATE), *OBSERVED).to(device)
        ours = VPSDE(GaussianScore(y, A, 0.05, prior, gamma=3e-2), prior.shape).to(device)

    noise: dict[str, Any] = {"mu": prior.mu, "sigma": prior.sigma}

    def published(eps: Any) -> Any:
        if guided:
            eps = Guided(
                y, lambda x: x[..., ::8, :1], 0.05, SimpleNamespace(eps=eps, **noise), 3e-2
            )
        return SimpleNamespace(eps=eps, shape=prior.shape, **noise)

    def run(sde: Any) -> Tensor:
        with torch.device(device):
            return posterior(sde, (batch,), **options)

    composed = Composed(network.kernel, network.order)
    eager = published(composed)
    compiled = published(torch.compile(composed, dynamic=False, backend=compiler))

    x, t = torch.randn(batch, LENGTH, STATE, device=device), torch.tensor(0.4, device=device)
    with torch.no_grad(), matmul_precision("highest"):
        error = relative_error(ours.eps(x, t), eager.eps(x, t))
    if not error < 1e-4:
        raise ArithmeticError(f"the two noise estimates differ by {error:.2g}")

    return {
        "eager": lambda: run(eager),
        "compiled": lambda: run(compiled),
        "native": lambda: sample(ours, (batch,), backend="native", **options),
    }
