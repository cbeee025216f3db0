r"""A network over whole trajectories of Lorenz-63, the paper's baseline of composition.

A U-Net of one depth, fully convolutional in time: what it says of a state depends on 14 states on
either side. Trained on trajectories of 32 states, it scores longer ones as it is.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 4.1
    | https://arxiv.org/abs/2306.10574
"""

from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from sda_fast import VPSDE, MCScoreWrapper, ScoreUNet
from sda_fast.data import draw_windows, simulate

from ..fit import fit
from .cases import LENGTH, chain

GLOBAL, STATES, BATCH = "global", 32, 32
TRAJECTORIES, LONG = 1024, 512  # what trajectories are cut from


@cache
def data() -> Tensor:
    """Simulates standardised trajectories (n, L, 3) to learn from."""
    return simulate(chain, TRAJECTORIES, LONG, generator=Generator().manual_seed(0))


def build() -> MCScoreWrapper:
    """Builds the network, with the paper's settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MCScoreWrapper(
            ScoreUNet(
                channels=3,
                embedding=32,
                hidden_channels=(64,),
                hidden_blocks=(3,),
                activation=nn.SiLU,
                spatial=1,
            )
        )


def loss(network: MCScoreWrapper) -> Tensor:
    """Returns the denoising loss of a batch of trajectories."""
    return VPSDE(network, (STATES, 3)).loss(draw_windows(data(), BATCH, STATES))


def load(folder: Path, iterations: int, device: str = "cpu") -> VPSDE:
    """Trains the network, unless the folder holds it."""
    network = fit(build(), loss, folder / f"global-{iterations}.safetensors", iterations=iterations)
    return VPSDE(network, (LENGTH, 3)).to(device)
