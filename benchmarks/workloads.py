"""The score networks that are timed, the same on every device.

Width 256, depth 5, windows of 5 states, trajectories of 65: the paper's Lorenz-63 network. And
U-Nets on windows of 5 two-dimensional fields, trajectories of 8, which are 4 windows; the paper's
has channels (96, 192, 384), on fields of 64². DEEP is one of four levels that is told a forcing.
And the paper's baseline, a U-Net over the time of whole trajectories.
"""

__all__ = [
    "DEEP",
    "LENGTH",
    "OBSERVED",
    "PAPER",
    "SMALL",
    "STATE",
    "Score",
    "count_flops",
    "make_network",
    "mlp_arguments",
    "mlp_score",
    "relative_error",
    "time_score",
    "unet_arguments",
    "unet_score",
]

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sda_fast import MCScoreNet, MCScoreWrapper, ScoreUNet, ops
from sda_fast.guidance import linearise
from sda_fast.score import sampling

from .published import Composed
from .turns import Work, precision

LENGTH, STATE = 65, 3
OBSERVED = (slice(None, None, 8), slice(0, 1))
FIELDS, COMPONENTS = 8, 2
SMALL, PAPER, DEEP = (32, 64, 128), (96, 192, 384), (32, 64, 128, 192)
FORCING = 6  # channels


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


@dataclass(frozen=True)
class Score:
    """A network of trajectories, composed from one of windows or not.

    Arguments:
        network: The network, which the sampler evaluates natively as far as it can.
        x: Trajectories.
        cotangent: What is multiplied with its Jacobian.
        context: What the network is told besides, if anything.
    """

    network: MCScoreNet | MCScoreWrapper
    x: Tensor
    cotangent: Tensor
    context: Tensor | None = None

    @cached_property
    def eager(self) -> nn.Module:
        """The same network, composed as it was published."""
        if isinstance(self.network, MCScoreWrapper):
            return self.network
        return Composed(self.network.kernel, self.network.order)

    @cached_property
    def t(self) -> Tensor:
        return torch.tensor(0.5, device=self.x.device)

    def work(self, kind: str, compiler: str = "inductor") -> Work:
        """Returns what is timed: the native code as the sampler calls it.

        Arguments:
            kind: "forward", or "vjp", which is it with the vector-Jacobian product.
            compiler: The backend of torch.compile.
        """
        x, t, c, v = self.x, self.t, self.context, self.cotangent

        def forward(network: Callable[..., Tensor]) -> Tensor:
            with torch.no_grad(), ops.backend("reference"):  # or a U-Net would be fused
                return network(x, t, c)

        def vjp(network: Callable[..., Tensor]) -> Tensor:
            with torch.enable_grad(), ops.backend("reference"):
                z = x.detach().requires_grad_()
                return torch.autograd.grad(network(z, t, c), z, v)[0]

        def native(network: MCScoreNet | MCScoreWrapper) -> Tensor:
            with torch.no_grad(), ops.backend("native"):
                if kind == "forward":
                    return network(x, t, c)
                best = getattr(network, "samples_at_once", len)
                count = max(best(x), 1)  # as the sampler does
                pairs = zip(x.split(count), v.split(count), strict=True)
                return torch.cat([linearise(network, z, t, c)[1](w) for z, w in pairs])

        networks: dict[str, Callable[..., Tensor]] = {
            "eager": self.eager,
            "compiled": torch.compile(self.eager, dynamic=False, backend=compiler),
        }
        if x.ndim == 5:
            networks["channels last, bfloat16"] = self._channels_last
        of = forward if kind == "forward" else vjp
        runs = {code: lambda n=n: of(n) for code, n in networks.items()}
        # a copy for each precision, since within `sampling` a network stays as it was packed first
        ours = ["native", "native bfloat16", *["native tf32"] * x.is_cuda]
        runs |= {code: partial(native, copy.deepcopy(self.network)) for code in ours}

        with precision("eager"):
            expected = runs["eager"]()
        return Work(
            runs,
            lambda code: relative_error(runs[code](), expected),
            flops=count_flops(runs["eager"]),
            bytes=self._bytes(kind),
            within=sampling,  # a network is packed once for many calls
        )

    def _bytes(self, kind: str) -> int:
        """Returns what must be read and written at least: states and what is made of them once,
        and the weights once each way."""
        states, weights = self.x.nbytes, sum(p.nbytes for p in self.network.parameters())
        return 2 * states + weights if kind == "forward" else 3 * states + 2 * weights

    @cached_property
    def _last(self) -> nn.Module:
        return copy.deepcopy(self.eager).to(memory_format=torch.channels_last)

    def _channels_last(self, x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self._last(x, t, c).float()


def mlp_arguments(width: int) -> dict[str, Any]:
    """Returns what the window MLP is made with."""
    return {
        "features": STATE,
        "order": 2,
        "embedding": 32,
        "hidden_features": [width] * 5,
        "activation": nn.SiLU,
    }


def unet_arguments(channels: tuple[int, ...] = SMALL) -> dict[str, Any]:
    """Returns what a U-Net for windows of states of two components on a periodic domain is made
    with: the paper's three blocks at each depth if its channels are the paper's, otherwise two;
    the deep one is told a forcing."""
    return {
        "features": COMPONENTS,
        "context": FORCING if channels == DEEP else 0,
        "order": 2,
        "spatial": 2,
        "embedding": 64,
        "hidden_channels": channels,
        "hidden_blocks": (3 if channels == PAPER else 2,) * len(channels),
        "activation": nn.SiLU,
        "padding_mode": "circular",
    }


def make_network(arguments: dict[str, Any], device: str = "cpu") -> MCScoreNet:
    """Makes a network, without gradients of its parameters."""
    return MCScoreNet(**arguments).requires_grad_(False).to(device)


def mlp_score(batch: int, width: int, device: str = "cpu") -> Score:
    """Makes the window MLP with trajectories."""
    x, v = torch.randn(2, batch, LENGTH, STATE, device=device)
    return Score(make_network(mlp_arguments(width), device), x, v)


def unet_score(side: int, channels: tuple[int, ...] = SMALL, device: str = "cpu") -> Score:
    """Makes a U-Net with a trajectory of fields."""
    x, v = torch.randn(2, 1, FIELDS, COMPONENTS, side, side, device=device)
    network = make_network(unet_arguments(channels), device)
    context = torch.randn(FORCING, side, side, device=device) if channels == DEEP else None
    return Score(network, x, v, context)


def time_score(batch: int, device: str = "cpu") -> Score:
    """Makes the paper's baseline, a U-Net over time, with trajectories."""
    x, v = torch.randn(2, batch, LENGTH, STATE, device=device)
    unet = ScoreUNet(
        STATE,
        embedding=32,
        hidden_channels=(64,),
        hidden_blocks=(3,),
        activation=nn.SiLU,
        spatial=1,
    )
    return Score(MCScoreWrapper(unet).requires_grad_(False).to(device), x, v)
