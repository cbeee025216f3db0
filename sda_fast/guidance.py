r"""Guidance: how observations enter, at inference only.

A guidance module estimates the noise of the posterior,

.. math:: \epsilon(x(t), t \mid y) = \epsilon_\phi(x(t), t)
    - \sigma(t) \nabla_{x(t)} \log p(y \mid x(t))

through the denoised state :math:`\hat x = (x(t) - \sigma(t) \epsilon_\phi) / \mu(t)`. It takes the
place of the network in a noise process whose event is the whole trajectory.
"""

__all__ = ["DPSGaussianScore", "GaussianScore"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor, nn


def _first(bad: Tensor) -> tuple[int, ...]:
    """Returns the index of the first true element."""
    return tuple(bad.nonzero()[0].tolist())


def _fits(shape: Size, other: Size) -> bool:
    """Says whether a shape broadcasts to another one."""
    pairs = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) <= len(other) and all(n in (1, m) for n, m in pairs)


def _observation(y: Tensor) -> Tensor:
    """Checks an observation."""
    y = torch.as_tensor(y)
    if y.is_complex():
        raise TypeError(f"y must be real, got {y.dtype}")

    missing = ~torch.isfinite(y)

    if bool(missing.any()):
        raise ValueError(
            f"y must be finite, got {int(missing.sum())} of {y.numel()} elements that are not, the "
            f"first at index {_first(missing)}; where y was not observed, leave it out: "
            "m = y.isfinite(), then y[m] and A=lambda x: A(x)[..., m]"
        )

    return y


def _residual(y: Tensor, A: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Subtracts what is predicted of denoised trajectories from what was observed."""
    prediction = A(x)

    if prediction.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"A must map each of the {len(x)} trajectories by itself, from shape {tuple(x.shape)} "
            f"to ({len(x)}, *observation), got {tuple(prediction.shape)}"
        )
    if x.requires_grad and not prediction.requires_grad:
        raise ValueError("A must be differentiable, but A(x) does not depend on x for torch")

    if not _fits(y.shape, prediction.shape):
        raise ValueError(
            f"y has shape {tuple(y.shape)}, but A(x) has shape {tuple(prediction.shape)}: "
            "the last dimensions of A(x) must be those of y"
        )
    if y.device != prediction.device:
        raise ValueError(
            f"y is on {y.device}, but A(x) is on {prediction.device}: move the guidance module"
        )

    return y.to(prediction.dtype) - prediction


class GaussianScore(nn.Module):
    r"""Guides by a Gaussian likelihood, as score-based data assimilation does.

    .. math:: p(y \mid x(t)) = N \left( y \mid A(\hat x),
        \Sigma_y + \frac{\sigma(t)^2}{\mu(t)^2} \Gamma \right)

    with diagonal :math:`\Sigma_y` and :math:`\Gamma`.

    References:
        | Score-based Data Assimilation (Rozet & Louppe, 2023), algorithm 3
        | https://arxiv.org/abs/2306.10574

    Arguments:
        y: The observation, with shape (*observation).
        A: The observation operator, from trajectories (B, *event) to (B, *observation).
        std: The standard deviation of the observation noise, broadcastable with y.
        sde: The noise process of the prior.
        gamma: The number or the diagonal :math:`\Gamma`, broadcastable with y.
        detach: Whether to leave the Jacobian of the network out of the gradient.

    Raises:
        ValueError: y is not finite; std or gamma is not a number of the right sign.
    """

    y: Tensor
    std: Tensor
    gamma: Tensor

    def __init__(
        self,
        y: Tensor,
        A: Callable[[Tensor], Tensor],
        std: float | Tensor,
        sde: Any,
        gamma: float | Tensor = 1e-2,
        detach: bool = False,
    ):
        super().__init__()

        self.register_buffer("y", _observation(y))
        self.register_buffer("std", torch.as_tensor(std))
        self.register_buffer("gamma", torch.as_tensor(gamma))

        for name, value, bad in (
            ("std", self.std, ~(self.std > 0)),
            ("gamma", self.gamma, ~(self.gamma >= 0)),
        ):
            if not _fits(value.shape, self.y.shape):
                raise ValueError(
                    f"{name} must be a number or broadcast to y, with shape {tuple(self.y.shape)}, "
                    f"got shape {tuple(value.shape)}"
                )
            if bool(bad.any()):
                sign = "positive" if name == "std" else "zero or positive"
                where = f" at index {_first(bad)}" if value.ndim else ""
                raise ValueError(f"{name} must be {sign}, got {value[_first(bad)].item()}{where}")

        self.A = A
        self.sde = sde
        self.detach = detach

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps noisy trajectories (B, *event), a time () and context to noise (B, *event)."""
        return torch.cat([self._guided(part, t, c) for part in x.split(self._at_once(x))])

    def _at_once(self, x: Tensor) -> int:
        """Returns how many samples to guide at once: as many as their network is fastest for."""
        fastest = getattr(self.sde.eps, "samples_at_once", len)(x)

        if fastest < len(x):
            with torch.no_grad():
                observed_each = self.A(x[:1]).ndim <= self.y.ndim
            if observed_each:  # y has a dimension of samples
                return len(x)

        return max(fastest, 1)

    def _guided(self, x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        mu, sigma = self.sde.mu(t), self.sde.sigma(t)

        with torch.enable_grad():
            x = x.detach().requires_grad_(True)

            with torch.set_grad_enabled(not self.detach):
                eps = self.sde.eps(x, t, c)

            error = _residual(self.y, self.A, (x - sigma * eps) / mu)
            variance = self.std**2 + self.gamma * (sigma / mu) ** 2
            log_likelihood = -(error**2 / variance).sum() / 2

        (gradient,) = torch.autograd.grad(log_likelihood, x)

        return eps.detach() - sigma * gradient


class DPSGaussianScore(nn.Module):
    r"""Guides by diffusion posterior sampling, the baseline.

    .. math:: \nabla_{x(t)} \log p(y \mid x(t)) \approx
        -\zeta \frac{\nabla_{x(t)} \| y - A(\hat x) \|^2}{\| y - A(\hat x) \|}

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        y: The observation, with shape (*observation).
        A: The observation operator, from trajectories (B, *event) to (B, *observation).
        sde: The noise process of the prior.
        zeta: The strength :math:`\zeta` of the guidance.
        per_sample: Whether the norm is that of each sample, as in the paper. The default is the
            norm over the whole batch, as in the reference package; there the guidance of a
            sample depends on the others. For a batch of one both are the same.

    Raises:
        ValueError: y is not finite.
    """

    y: Tensor

    def __init__(
        self,
        y: Tensor,
        A: Callable[[Tensor], Tensor],
        sde: Any,
        zeta: float = 1.0,
        *,
        per_sample: bool = False,
    ):
        super().__init__()

        self.register_buffer("y", _observation(y))

        self.A = A
        self.sde = sde
        self.zeta = zeta
        self.per_sample = per_sample

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps noisy trajectories (B, *event), a time () and context to noise (B, *event)."""
        mu, sigma = self.sde.mu(t), self.sde.sigma(t)

        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            eps = self.sde.eps(x, t, c)
            error = _residual(self.y, self.A, (x - sigma * eps) / mu).square()

            if self.per_sample:
                error = error.flatten(1).sum(dim=1).reshape(-1, *(1,) * (x.ndim - 1))
            else:
                error = error.sum()

            (gradient,) = torch.autograd.grad(error.sum(), x)

        gradient = -self.zeta * gradient / error.detach().sqrt()

        return eps.detach() - sigma * gradient
