"""The denoising loss of windows."""

__all__ = ["LEVELS", "denoising_error", "squared_error"]

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from ..schedule import VPSDE
from ..score import MCScoreNet

#: The diffusion times at which the denoising error is reported.
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def squared_error(
    network: MCScoreNet,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    length: Tensor,
    sde: VPSDE,
    kernel: Callable[..., Tensor] | None = None,
    context: Tensor | None = None,
) -> Tensor:
    r"""Returns the mean of :math:`(\epsilon_\phi - \epsilon)^2` over valid states, for each window.

    Arguments:
        network: The network.
        x: Clean, standardised windows, with shape (B, w, *state).
        eps: The noise, of the same shape.
        t: The diffusion times, with shape (B).
        length: The number of states of each window, with shape (B).
        sde: The noise process.
        kernel: What evaluates the network's kernel, by default itself.
        context: The context of each window, with shape (B, context, *).
    """
    mask = (torch.arange(x.shape[1], device=x.device) < length[:, None]).to(x.dtype)
    context = network._context(mask, x, context)
    valid = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)).expand_as(x).flatten(1, 2)

    x, eps = x.flatten(1, 2), eps.flatten(1, 2)
    times = t.reshape(-1, *(1,) * (x.ndim - 1))
    noisy = sde.mu(times) * x + sde.sigma(times) * eps
    estimate = (kernel or network.kernel)(noisy * valid, t, context)

    error = (estimate - eps).square() * valid
    return error.flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1)


def denoising_error(
    sde: VPSDE,
    windows: Tensor,
    length: int | None = None,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[float]:
    r"""Measures :math:`E (\epsilon_\phi - \epsilon)^2` of a prior's network at noise levels.

    Arguments:
        sde: The prior, whose network is a :class:`sda_fast.MCScoreNet`.
        windows: Clean, standardised windows, with shape (n, w, *state).
        length: The number of states of each window that are scored, by default all.
        levels: The diffusion times.
        seed: The seed of the noise.
        batch_size: The number of windows that the network is given at once, by default all.
    """
    generator = Generator().manual_seed(seed)
    device, count = sde.device.device, batch_size or len(windows)
    states = length or windows.shape[1]
    errors = []

    with torch.no_grad():
        for level in levels:
            noise = torch.randn(windows.shape, generator=generator)
            total = 0.0
            for x, eps in zip(windows.split(count), noise.split(count), strict=True):
                n = len(x)
                error = squared_error(
                    sde.eps,  # type: ignore[arg-type]
                    x.to(device),
                    eps.to(device),
                    torch.full((n,), level, device=device),
                    torch.full((n,), states, device=device),
                    sde,
                )
                total += float(error.mean()) * (n / len(windows))
            errors.append(total)

    return errors
