"""Times a training step: the loss, its gradient and the optimiser's update.

Of the paper's Lorenz-63 network, and of a U-Net in float32 and with bfloat16 autocast.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE

from .turns import Work, is_half
from .workloads import count_flops, make_network, mlp_arguments, unet_arguments

CODES = ["eager", pytest.param("compiled", marks=pytest.mark.slow)]


class Step:
    """A training step of a window network, on noise of its own.

    Arguments:
        network: The network, from windows x and times to noise.
        x: The windows.
        code: The name of the code.
    """

    def __init__(self, network: nn.Module, x: Tensor, code: str):
        self.network = copy.deepcopy(network).requires_grad_(True)
        self.sde = VPSDE(self.network, shape=x.shape[1:])
        self.loss = torch.compile(self._loss, dynamic=False) if code == "compiled" else self._loss
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.x, self.half = x, is_half(code)

    def _loss(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.half):
            return self.sde.loss(x)

    def __call__(self) -> Tensor:
        loss = self.loss(self.x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def training_work(network: nn.Module, x: Tensor) -> Work:
    """Returns steps; the loss is compared with that of eager steps, whose noise differs."""
    steps = {code: Step(network, x, code) for code in ("eager", "compiled", "eager bfloat16")}
    expected = torch.stack([Step(network, x, "eager")() for _ in range(4)]).mean()
    return Work(
        steps,
        lambda code: float(abs(Step(network, x, code)() / expected - 1)),
        flops=count_flops(Step(network, x, "eager")),
        limit=0.2,
    )


@pytest.mark.parametrize("batch", [64, 1024])
@pytest.mark.parametrize("code", CODES)
def test_mlp(timed, device: str, batch: int, code: str):
    def work() -> Work:
        network = make_network(mlp_arguments(256), device).kernel
        return training_work(network, torch.randn(batch, 15, device=device))

    timed(f"MLP, width 256, {batch} windows", work)


@pytest.mark.parametrize(
    ("batch", "side"), [(2, 32), *(pytest.param(16, n, marks=pytest.mark.slow) for n in (32, 64))]
)
@pytest.mark.parametrize("code", [*CODES, "eager bfloat16"])
def test_unet(timed, device: str, batch: int, side: int, code: str):
    def work() -> Work:
        network = make_network(unet_arguments(), device).kernel
        return training_work(network, torch.randn(batch, 10, side, side, device=device))

    timed(f"U-Net, {batch} windows of {side}²", work)
