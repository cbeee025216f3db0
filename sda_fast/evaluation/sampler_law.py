r"""The law of the sampler's own samples, in closed form, where the noise estimator is linear.

With :math:`\epsilon(x, t) = M_t x + v_t` every step of the sampler is affine in the state and in
fresh noise, so that Gaussian noise stays Gaussian and its mean and covariance follow by recursion:
what a composition or a schedule costs is then known without Monte-Carlo noise. The one
approximation is the corrector's :math:`\delta = \tau / \operatorname{mean}(\epsilon^2)`, which
depends on the sample: here the mean is its expectation.
"""

__all__ = ["kl_divergence", "sampler_law"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sampler.plan import make_schedule
from ..schedule import coefficients
from .linear_gaussian import Gaussian


def sampler_law(
    sde: Any,
    eps: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int | Sequence[float] | Tensor = 64,
    corrections: int | Sequence[int] | Callable[[float], int] = 0,
    tau: float | Sequence[float] | Callable[[float], float] = 1.0,
    denoise: bool = False,
) -> Gaussian:
    r"""Computes the law of the samples of :func:`sda_fast.sample`.

    Arguments:
        sde: The noise process, whose event has n elements.
        eps: Its noise estimator, affine in the state, in float64.
        steps: The number of predictor steps, or the time grid.
        corrections: The number of Langevin corrections after each step.
        tau: The amplitude of the corrections.
        denoise: Whether the last state is denoised.

    Returns:
        The mean and covariance, with shapes (n) and (n, n).

    Raises:
        ValueError: An argument is out of its range, as in :func:`sda_fast.sample`.
    """
    n = sde.shape.numel()
    eye = torch.eye(n, dtype=torch.float64)
    probes = torch.cat((torch.zeros(1, n, dtype=torch.float64), eye))

    def affine(t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            v, *columns = eps(probes.reshape(-1, *sde.shape), t).flatten(1)
        return torch.stack(columns, dim=1) - v[:, None], v

    times, counts, amplitudes = make_schedule(steps, corrections, tau)
    mu, sigma = coefficients(sde, times)
    mean, S = torch.zeros(n, dtype=torch.float64), eye
    M, v = affine(times[0])

    for i, (count, amplitude) in enumerate(zip(counts, amplitudes, strict=True), start=1):
        r = mu[i] / mu[i - 1]
        b = sigma[i] - r * sigma[i - 1]
        P = r * eye + b * M
        mean, S = P @ mean + b * v, P @ S @ P.T

        M, v = affine(times[i])
        for _ in range(count):
            square = (M @ S @ M.T).trace() + (M @ mean + v).square().sum()
            delta = amplitude / (square / n)
            P = eye - sigma[i] * delta * M
            mean = P @ mean - sigma[i] * delta * v
            S = P @ S @ P.T + 2 * delta * sigma[i] ** 2 * eye

    if denoise:
        P = (eye - sigma[-1] * M) / mu[-1]
        mean, S = P @ mean - sigma[-1] / mu[-1] * v, P @ S @ P.T

    return Gaussian(mean, S)


def kl_divergence(p: Gaussian, q: Gaussian) -> float:
    """Returns the Kullback-Leibler divergence of a Gaussian law p from a law q, in nats."""
    L = torch.linalg.cholesky(q.covariance)
    K = torch.linalg.solve_triangular(L, torch.linalg.cholesky(p.covariance), upper=False)
    shift = torch.linalg.solve_triangular(L, (p.mean - q.mean)[:, None], upper=False)
    log_ratio = K.diagonal().log().sum()

    return float((K.square().sum() + shift.square().sum() - len(L)) / 2 - log_ratio)
