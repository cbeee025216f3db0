r"""The law of the sampler's own samples, in closed form, where the noise estimator is linear.

That of data with a Gaussian law is: for :math:`x \sim N(m, S)`

.. math:: \epsilon(x(t), t) = -\sigma \nabla \log p(x(t)) =
    \sigma (\mu^2 S + \sigma^2 I)^{-1} (x(t) - \mu m)

and so is one composed of such windows. With :math:`\epsilon(x, t) = M_t x + v_t` every step of the
sampler is affine in the state and in fresh noise, so that Gaussian noise stays Gaussian and its
mean and covariance follow by recursion: what a composition or a schedule costs is then known
without Monte-Carlo noise. The one approximation is the corrector's
:math:`\delta = \tau / \operatorname{mean}(\epsilon^2)`, which depends on the sample: here the
mean is its expectation.
"""

__all__ = [
    "GaussianEstimator",
    "WindowEstimator",
    "gaussian_wasserstein",
    "kl_divergence",
    "sampler_law",
]

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..sampler.plan import make_schedule
from ..schedule import adams_bashforth, coefficients
from .linear_gaussian import Gaussian


class GaussianEstimator(nn.Module):
    r"""The exact noise estimator of data with a Gaussian law :math:`N(m, S)`.

    .. math:: \epsilon(x, t) = \sigma (\mu^2 S + \sigma^2 I)^{-1} (x - \mu m)

    It takes the place of a network, in a noise process whose event has n elements.

    Arguments:
        law: The law of the data, with n elements.
        sde: A noise process with methods `mu` and `sigma`.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, law: Gaussian, sde: Any):
        super().__init__()

        values, vectors = torch.linalg.eigh(law.covariance.double())
        self.register_buffer("mean", law.mean.double())
        self.register_buffer("values", values.clamp(min=0))
        self.register_buffer("vectors", vectors)
        self.mu, self.sigma = sde.mu, sde.sigma

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps states of any shape whose last dimensions have n elements, and times (), or one for
        each of them, to noise of the same shape."""
        t = t.to(self.mean.dtype)
        mu, sigma = self.mu(t)[..., None], self.sigma(t)[..., None]

        z = x.to(self.mean.dtype).reshape(*(t.shape or (-1,)), len(self.mean))
        z = (z - mu * self.mean) @ self.vectors
        z = sigma * z / (mu**2 * self.values + sigma**2) @ self.vectors.T

        return z.reshape(x.shape).to(x.dtype)


class WindowEstimator(nn.Module):
    """The exact noise estimator of windows of a stationary chain, of the interface of
    :class:`sda_fast.ScoreNet`: it takes the place of the `kernel` of a
    :class:`sda_fast.MCScoreNet`, length-aware or not.

    Arguments:
        law: The law of a window of w states, with w D elements, whose leading ones are those of
            shorter windows.
        window: The number w of states.
        sde: A noise process with methods `mu` and `sigma`.
    """

    def __init__(self, law: Gaussian, window: int, sde: Any):
        super().__init__()

        self.window = window
        self.size = len(law.mean) // window
        self.estimators = nn.ModuleList(
            GaussianEstimator(Gaussian(law.mean[:n], law.covariance[:n, :n]), sde)
            for n in range(self.size, window * self.size + 1, self.size)
        )

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps windows (*, w D), times, broadcastable with (*), and a context, the mask of their
        states (*, w), by default all, to noise (*, w D), 0 beyond the states."""
        t = t.expand(x.shape[:-1])

        if c is None:
            return self.estimators[-1](x, t)

        length = c[..., -self.window :].sum(dim=-1, keepdim=True)
        eps = torch.zeros_like(x)

        for n in map(int, length.unique()):
            part = self.estimators[n - 1](x[..., : n * self.size], t)
            part = nn.functional.pad(part, (0, x.shape[-1] - part.shape[-1]))
            eps = torch.where(length == n, part, eps)

        return eps


def sampler_law(
    sde: Any,
    eps: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int | Sequence[float] | Tensor = 64,
    corrections: int | Sequence[int] | Callable[[float], int] = 0,
    tau: float | Sequence[float] | Callable[[float], float] = 1.0,
    order: int = 1,
    denoise: bool = False,
) -> Gaussian:
    r"""Computes the law of the samples of :func:`sda_fast.sample`.

    Arguments:
        sde: The noise process, whose event has n elements.
        eps: Its noise estimator, affine in the state, in float64.
        steps: The number of predictor steps, or the time grid.
        corrections: The number of Langevin corrections after each step.
        tau: The amplitude of the corrections.
        order: The number of estimates that a predictor step uses.
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
    weights = adams_bashforth(sde, times, order)

    # the law of the state and of the last estimates but the present one, jointly
    m, x = order * n, slice(n)
    mean, S = torch.zeros(m, dtype=torch.float64), torch.zeros(m, m, dtype=torch.float64)
    S[x, x] = eye
    M, v = affine(times[0])

    for i, (count, amplitude) in enumerate(zip(counts, amplitudes, strict=True), start=1):
        r = mu[i] / mu[i - 1]
        b = sigma[i] - r * sigma[i - 1]
        w = b * weights[i - 1]
        P, c = torch.zeros_like(S), torch.zeros_like(mean)
        P[x] = torch.kron(w, eye)
        P[x, x], c[x] = r * eye + w[0] * M, w[0] * v
        if order > 1:
            P[n : 2 * n, x], c[n : 2 * n] = M, v
            P[2 * n :, n:-n] = torch.eye(m - 2 * n, dtype=torch.float64)
        mean, S = P @ mean + c, P @ S @ P.T

        M, v = affine(times[i])
        for _ in range(count):
            square = (M @ S[x, x] @ M.T).trace() + (M @ mean[x] + v).square().sum()
            delta = amplitude / (square / n)
            P = torch.eye(m, dtype=torch.float64)
            P[x, x] -= sigma[i] * delta * M
            mean = P @ mean
            mean[x] -= sigma[i] * delta * v
            S = P @ S @ P.T
            S[x, x] += 2 * delta * sigma[i] ** 2 * eye

    mean, S = mean[x], S[x, x]
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


def gaussian_wasserstein(p: Gaussian, q: Gaussian) -> float:
    r"""Returns the Wasserstein-2 distance of two Gaussian laws.

    .. math:: W_2^2 = \| m_p - m_q \|^2 +
        \operatorname{tr}(S_p + S_q - 2 (S_p^{1/2} S_q S_p^{1/2})^{1/2})

    References:
        | On a Formula for the L2 Wasserstein Metric between Measures on Euclidean and Hilbert
        | Spaces (Gelbrich, 1990), https://doi.org/10.1002/mana.19901470121
    """
    values, vectors = torch.linalg.eigh(p.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ q.covariance @ root).clamp(min=0).sqrt().sum()
    shift = (p.mean - q.mean).square().sum()
    square = shift + p.covariance.trace() + q.covariance.trace() - 2 * cross

    return math.sqrt(max(float(square), 0.0))  # rounding may leave less than nothing
