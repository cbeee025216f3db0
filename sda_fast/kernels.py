"""Kernels of window networks besides the plain ones: told a forcing, or estimating a velocity."""

__all__ = ["ForcedScoreUNet", "VelocityKernel", "kolmogorov_forcing"]

import math
from typing import Any

import torch
from torch import Tensor, nn

from .nn import broadcast
from .reference import widen
from .schedule import VPSDE
from .score import ScoreUNet


def kolmogorov_forcing(size: int, wavenumber: int = 4) -> Tensor:
    r"""Returns :math:`\sin(k y)` at the centres of the cells of a periodic square of side
    :math:`2 \pi`, with shape (1, N, N), y last.

    References:
        | Score-based Data Assimilation (Rozet & Louppe, 2023), section 4.2
        | https://arxiv.org/abs/2306.10574

    Arguments:
        size: The number N of cells along each axis.
        wavenumber: The wavenumber k.
    """
    y = 2 * math.pi / size * (torch.arange(size) + 0.5)
    return torch.sin(wavenumber * y).expand(1, size, size).contiguous()


class ForcedScoreUNet(ScoreUNet):
    """A :class:`sda_fast.ScoreUNet` that is told the forcing by one more channel of context, its
    own, so that who calls it need not know.

    Arguments:
        channels: The number of channels.
        context: The number of context channels besides.
        forcing: The forcing, with shape (1, H, W).
        kwargs: Keyword arguments passed to :class:`sda_fast.ScoreUNet`.
    """

    forcing: Tensor

    def __init__(self, channels: int, context: int = 0, *, forcing: Tensor, **kwargs: Any):
        super().__init__(channels, context + 1, **kwargs)
        self.register_buffer("forcing", forcing)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps fields (*, channels, H, W), times () or one for each field, and context
        (*, context, H, W) to noise (*, channels, H, W).

        Raises:
            ValueError: The fields are not on the grid of the forcing.
        """
        grid = self.forcing.shape[-2:]
        if x.shape[-2:] != grid:
            raise ValueError(
                f"x must be on a grid of {grid[0]} x {grid[1]} cells, got shape {tuple(x.shape)}"
            )
        if c is not None:
            c = torch.cat(broadcast(c, self.forcing, ignore=3), dim=-3)

        return super().forward(x, t, self.forcing if c is None else c)


class VelocityKernel(nn.Module):
    r"""Estimates the noise by way of the velocity, :math:`v = \mu \epsilon - \sigma x`.

    .. math:: \epsilon_\phi(x(t), t) = \sigma(t) x(t) + \mu(t) v_\phi(x(t), t)

    where :math:`\mu^2 + \sigma^2 = 1`. Where noise is strong, an error of the network is damped by
    :math:`\mu`, while :math:`x = (x(t) - \sigma \epsilon) / \mu` would magnify it: large scales, of
    which a loss over all pixels sees little, are of the right strength much earlier in training.

    References:
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)
        | https://arxiv.org/abs/2202.00512

    Arguments:
        score: The network, a :class:`sda_fast.ScoreNet` or :class:`sda_fast.ScoreUNet`.
        alpha: The schedule of the noise process, see :class:`sda_fast.VPSDE`.
        eta: Its numerical stability term.
    """

    def __init__(self, score: nn.Module, alpha: str = "cos", eta: float = 1e-3):
        super().__init__()
        self.score = score
        # in a tuple, so that its buffer is not one of this module's state
        self.process = (VPSDE(nn.Identity(), (), alpha, eta),)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps noisy windows (*, features) or (*, channels, H, W), times () or one for each
        window, and context to noise of the shape of x."""
        (process,) = self.process
        # rounded to a half type near 0, levels lose all their digits
        times = widen(t).reshape(*t.shape, *(1,) * (x.ndim - t.ndim))
        mu, sigma = process.mu(times).to(x.dtype), process.sigma(times).to(x.dtype)
        return sigma * x + mu * self.score(x, t, c)
