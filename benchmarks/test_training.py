"""Times a training step: the loss, its gradient and the optimiser's update.

Of the paper's Lorenz-63 network, and of a U-Net in float32 and with bfloat16 autocast. There are no
operators for it: "native" is the step of `sda_fast train`, which takes the optimiser's update in
one pass, "native compiled" with its option `--compile`. On a GPU fields in bfloat16 have their
channels last. Where the reference package is installed, it learns too.
"""

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, MCScoreNet
from sda_fast.training.loss import squared_error

from .published import denoising_loss
from .samples import importable
from .turns import Work, is_half
from .workloads import (
    COMPONENTS,
    STATE,
    count_flops,
    make_network,
    mlp_arguments,
    unet_arguments,
)

CODES = (
    *("eager", pytest.param("compiled", marks=pytest.mark.slow), "native"),
    *("eager bfloat16", "native bfloat16", "sda"),
    *(pytest.param(f"native compiled{half}", marks=pytest.mark.slow) for half in ("", " bfloat16")),
)


class Step:
    """A training step of a window network, on noise of its own.

    Arguments:
        network: The network.
        x: Windows, with shape (B, w, *state).
        code: The name of the code.
        kernel: What evaluates windows (B, w C, *), by default the network's own kernel.
    """

    def __init__(self, network: MCScoreNet, x: Tensor, code: str, kernel: nn.Module | None = None):
        self.network = copy.deepcopy(network).requires_grad_(True)
        self.kernel = (kernel or self.network.kernel).requires_grad_(True)
        self.sde = VPSDE(self.network, shape=x.shape[1:])
        self.x, self.half, native = x, is_half(code), code.startswith("native")
        self.last = native and self.half and x.ndim == 5 and x.is_cuda
        if self.last:
            self.kernel.to(memory_format=torch.channels_last)
        self.evaluate: Callable[..., Tensor] = self.kernel
        if code.startswith("native compiled"):
            self.evaluate = torch.compile(self.kernel, dynamic=False)
        loss = self._native if native else self._published
        self.loss = torch.compile(loss, dynamic=False) if code == "compiled" else loss
        self.optimizer = torch.optim.AdamW(self.kernel.parameters(), lr=1e-4, fused=native)

    def _evaluate(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        if self.last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.half):
            return self.evaluate(x, t, c)

    def _published(self) -> Tensor:
        return denoising_loss(self._evaluate, self.x.flatten(1, 2), self.sde)

    def _native(self) -> Tensor:
        x, count = self.x, len(self.x)
        t = (torch.arange(count, device=x.device) + torch.rand(count, device=x.device)) / count
        length = torch.full((count,), x.shape[1], device=x.device)
        eps = torch.randn_like(x)
        return squared_error(self.network, x, eps, t, length, self.sde, self._evaluate).mean()

    def __call__(self) -> Tensor:
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def training_work(arguments: dict[str, Any], x: Tensor) -> Work:
    """Returns steps; the loss is compared with that of eager steps, whose noise differs.

    Arguments:
        arguments: What the network is made with.
        x: Windows, with shape (B, w, *state).
    """
    network = make_network(arguments, x.device.type)

    def step(code: str) -> Step:
        kernel = None
        if code == "sda":
            own = import_module("sda.score").MCScoreNet(**arguments)
            own.load_state_dict(network.state_dict())
            kernel = own.kernel.to(x.device)
        return Step(network, x, code, kernel)

    codes = ["eager", "compiled", "native", "native compiled"]
    codes += [f"{code} bfloat16" for code in codes if code != "compiled"]
    steps = {code: step(code) for code in (*codes, *(["sda"] if importable("sda.score") else []))}
    expected = torch.stack([step("eager")() for _ in range(4)]).mean()
    return Work(
        steps,
        lambda code: float(abs(step(code)() / expected - 1)),
        flops=count_flops(step("eager")),
        limit=0.2,
    )


@pytest.fixture
def learnt(timed, code: str):
    """Times a code: `learnt(title, arguments, windows)`."""

    def time(title: str, arguments: dict[str, Any], x: Tensor) -> None:
        if code == "sda":
            pytest.importorskip("sda.score", exc_type=ImportError)
        timed(title, lambda: training_work(arguments, x))

    return time


@pytest.mark.parametrize("batch", [64, 1024])
@pytest.mark.parametrize("code", CODES)
def test_mlp(learnt, device: str, batch: int, code: str):
    x = torch.randn(batch, 5, STATE, device=device)
    learnt(f"MLP, width 256, {batch} windows", mlp_arguments(256), x)


@pytest.mark.parametrize(
    ("batch", "side"), [(2, 32), *(pytest.param(16, n, marks=pytest.mark.slow) for n in (32, 64))]
)
@pytest.mark.parametrize("code", CODES)
def test_unet(learnt, device: str, batch: int, side: int, code: str):
    x = torch.randn(batch, 5, COMPONENTS, side, side, device=device)
    learnt(f"U-Net, {batch} windows of {side}²", unet_arguments(), x)
