"""Times a training step: the loss, its gradient and the optimiser's update.

Of the paper's Lorenz-63 network, and of a U-Net in float32 and with bfloat16 autocast.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE

from .workloads import count_flops, mlp_network, unet_network

SLOW = pytest.mark.slow
CODES = ["eager", pytest.param("compiled", marks=SLOW)]


class Step:
    """A training step of a window network, on noise of its own.

    Arguments:
        network: The network, from windows x and times to noise.
        x: The windows.
        code: The name of the code.
    """

    def __init__(self, network: nn.Module, x: Tensor, code: str):
        self.network = network.requires_grad_(True)
        self.sde = VPSDE(self.network, shape=x.shape[1:])
        self.loss = torch.compile(self._loss, dynamic=False) if code == "compiled" else self._loss
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        self.x, self.half = x, code.endswith("bfloat16")

    def _loss(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
            return self.sde.loss(x)

    def __call__(self) -> Tensor:
        loss = self.loss(self.x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def step(timed, group: str, network: nn.Module, x: Tensor, code: str) -> None:
    """Compares the loss with that of the eager code, whose noise differs, and times the step."""
    expected = torch.stack([Step(copy.deepcopy(network), x, "eager")() for _ in range(4)])
    run = Step(network, x, code)
    assert abs(run() - expected.mean()) < 0.2 * expected.mean()
    timed(group, code, run, flops=count_flops(Step(copy.deepcopy(network), x, "eager")))


@pytest.mark.parametrize("batch", [64, 1024])
@pytest.mark.parametrize("code", CODES)
def test_mlp(timed, batch: int, code: str):
    step(
        timed,
        f"training step, MLP, {batch} windows",
        mlp_network(256).kernel,
        torch.randn(batch, 15),
        code,
    )


@pytest.mark.slow
@pytest.mark.parametrize("code", [*CODES, "eager bfloat16"])
def test_unet(timed, code: str):
    network = unet_network()
    step(
        timed, "training step, U-Net, 16 windows of 32²", network, torch.randn(16, 10, 32, 32), code
    )
