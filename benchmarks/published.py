"""The published method in eager PyTorch, what `sda_fast` is measured against.

Written from the paper (Rozet & Louppe, 2023): the loss, the composition of algorithm 2 by views of
a trajectory, the guidance of algorithm 3 by autograd and the sampler of algorithm 4, with torch's
own random numbers. The network is the same module.
"""

__all__ = ["Composed", "Guided", "denoising_loss", "posterior"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def denoising_loss(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sde: Any) -> Tensor:
    """Returns the mean squared error of the noise that a network finds in windows (B, *)."""
    t = torch.rand(len(x), device=x.device)
    times = t.reshape(-1, *(1,) * (x.ndim - 1))
    eps = torch.randn_like(x)
    return (network(sde.mu(times) * x + sde.sigma(times) * eps, t) - eps).square().mean()


class Composed(nn.Module):
    """A window network composed over a trajectory.

    Arguments:
        kernel: The network, from windows (B, N, (2k + 1) C, *) to the same.
        order: The half-width k of the windows.
    """

    def __init__(self, kernel: nn.Module, order: int):
        super().__init__()
        self.kernel, self.order = kernel, order

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        k = self.order
        windows = x.unfold(1, 2 * k + 1, 1).movedim(-1, 2).flatten(2, 3)
        rows = self.kernel(windows, t, c).unflatten(2, (2 * k + 1, -1))
        return torch.cat((rows[:, 0, :k], rows[:, :, k], rows[:, -1, k + 1 :]), dim=1)


class Guided(nn.Module):
    """Gaussian guidance, its gradient by autograd.

    Arguments:
        y: The observation.
        A: The observation operator.
        std: The standard deviation of its noise.
        sde: The prior's noise process.
        gamma: The number gamma.
    """

    def __init__(
        self, y: Tensor, A: Callable[[Tensor], Tensor], std: float, sde: Any, gamma: float
    ):
        super().__init__()
        self.y, self.A, self.std, self.sde, self.gamma = y, A, std, sde, gamma

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        mu, sigma = self.sde.mu(t), self.sde.sigma(t)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            eps = self.sde.eps(x, t, c)
            error = self.y - self.A((x - sigma * eps) / mu)
            variance = self.std**2 + self.gamma * (sigma / mu) ** 2
            log_likelihood = -(error**2 / variance).sum() / 2
        (gradient,) = torch.autograd.grad(log_likelihood, x)
        return eps.detach() - sigma * gradient


def posterior(
    sde: Any, shape: tuple[int, ...], steps: int, corrections: int = 0, tau: float = 1.0
) -> Tensor:
    """Draws samples of a noise process with `eps`, `mu`, `sigma` and the event shape `shape`."""
    x = torch.randn(*shape, *sde.shape)
    dims = tuple(range(-len(sde.shape), 0))
    time, dt = torch.linspace(1, 0, steps + 1), 1 / steps

    with torch.no_grad():
        for t in time[:-1]:
            r = sde.mu(t - dt) / sde.mu(t)
            x = r * x + (sde.sigma(t - dt) - r * sde.sigma(t)) * sde.eps(x, t)
            for _ in range(corrections):
                z = torch.randn_like(x)
                eps = sde.eps(x, t - dt)
                delta = tau / eps.square().mean(dim=dims, keepdim=True)
                x = x - (delta * eps + torch.sqrt(2 * delta) * z) * sde.sigma(t - dt)

    return x
