"""The denoising loss of windows."""

__all__ = ["LEVELS", "consistency_error", "cut", "denoising_error", "squared_error"]

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
    estimate, valid = _estimate(network, x, eps, t, length, sde, kernel, context)
    return _mean_square(estimate - eps, valid)


def consistency_error(
    network: MCScoreNet,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    start: Tensor,
    length: Tensor,
    sde: VPSDE,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    r"""Returns the mean of :math:`(\epsilon_\phi - \epsilon)^2` for each window W, and for a part S
    cut out of each, with the same noise, that of
    :math:`(\epsilon_\phi(x_S) - \epsilon_\phi(x_W)_S)^2`, the latter not differentiated.

    The score of a part is the conditional mean of the score of the whole, at equal noise,

    .. math:: E[\epsilon_S \mid x_S(t)] = E\bigl[E[\epsilon_S \mid x_W(t)] \mid x_S(t)\bigr],

    so both terms have the minimum of the denoising loss where the network can reach it, and where
    it cannot, parts agree with the wholes that they are subtracted from in the junction rule.

    Arguments:
        network: A length-aware network.
        x: Clean, standardised windows, with shape (B, w, *state).
        eps: The noise, of the same shape.
        t: The diffusion times, with shape (B).
        start: The first state of each part, with shape (B).
        length: The number of states of each part, with shape (B), at most w - `start`.
        sde: The noise process.
        kernel: What evaluates the network's kernel, by default itself.

    Returns:
        The errors, with shape (2 B), of the windows and then of the parts.
    """
    n, w = x.shape[:2]
    x, noise = (torch.cat((y, cut(y, start))) for y in (x, eps))
    lengths = torch.cat((torch.full_like(length, w), length))
    estimate, valid = _estimate(network, x, noise, torch.cat((t, t)), lengths, sde, kernel)

    target = torch.cat((eps, cut(estimate[:n].detach(), start)))
    return _mean_square(estimate - target, valid)


def cut(x: Tensor, start: Tensor) -> Tensor:
    """Moves windows (B, w, *) so that each begins with its state `start` (B); the last state fills
    what is left."""
    n, w = x.shape[:2]
    rows = (start[:, None] + torch.arange(w, device=x.device)).clamp(max=w - 1)
    return x[torch.arange(n, device=x.device)[:, None], rows]


def _estimate(
    network: MCScoreNet,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    length: Tensor,
    sde: VPSDE,
    kernel: Callable[..., Tensor] | None = None,
    context: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimates the noise (B, w, *state) of windows of so many states; returns which of it is of
    their states, too, 1 or 0."""
    mask = (torch.arange(x.shape[1], device=x.device) < length[:, None]).to(x.dtype)
    context = network._context(mask, x, context)
    valid = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)).expand_as(x)

    times = t.reshape(-1, *(1,) * (x.ndim - 1))
    noisy = (sde.mu(times) * x + sde.sigma(times) * eps) * valid
    estimate = (kernel or network.kernel)(noisy.flatten(1, 2), t, context)

    return estimate.reshape(x.shape), valid


def _mean_square(error: Tensor, valid: Tensor) -> Tensor:
    """Returns the mean square over what is valid, for each window."""
    return (error.square() * valid).flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1)


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
