r"""A kernel that is preconditioned by the covariance of its windows.

Karras et al. (2022) put the denoiser together from a network F of unit inputs and unit targets,

.. math:: \hat{x} = c_\mathrm{skip} \, y + c_\mathrm{out} \, F(c_\mathrm{in} \, y), \qquad
    y = x(t) / \mu = x + s \epsilon, \quad s = \sigma / \mu

with :math:`c_\mathrm{skip} = \varsigma^2 / (\varsigma^2 + s^2)`,
:math:`c_\mathrm{out} = s \varsigma / \sqrt{\varsigma^2 + s^2}` and
:math:`c_\mathrm{in} = 1 / \sqrt{\varsigma^2 + s^2}` for data of variance :math:`\varsigma^2`. Of
standardised states this variance is 1, where :math:`\mu^2 + \sigma^2 = 1` the input is x(t) itself,
and the noise that the denoiser implies is

.. math:: \epsilon = \frac{x(t) - \mu \hat{x}}{\sigma} = \sigma x(t) - \mu F

so F is minus the velocity: on this schedule it is :class:`sda_fast.kernels.VelocityKernel`.

But the states of a window are alike. With time steps of 0.025 nearly all of its variance is in a
few directions, and where t is small what decides is in the others, where the input is tens of times
smaller than 1. With the covariance :math:`\Sigma` of windows in place of the number
:math:`\varsigma^2`, every direction is of unit variance at every t:

.. math:: \epsilon = \sigma S^{-1} x(t) - \mu \Sigma^{1/2} S^{-1/2} F(S^{-1/2} x(t), t),
    \qquad S = \mu^2 \Sigma + \sigma^2 I

The first term is the noise estimate that is exact for Gaussian windows.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364
"""

import torch
from torch import Tensor, nn

from sda_fast import VPSDE


class PreconditionedKernel(nn.Module):
    """Estimates the noise of windows of 1 to w states by a preconditioned network.

    Arguments:
        score: The network of a length-aware :class:`sda_fast.MCScoreNet`.
        windows: Windows to take the covariance from, standardised, with shape (n, w, D).
    """

    values: Tensor
    vectors: Tensor

    def __init__(self, score: nn.Module, windows: Tensor):
        super().__init__()
        self.score = score
        self._process = [VPSDE(nn.Identity(), ())]  # a list: it has no parameters

        w, D = windows.shape[1:]
        covariance = torch.cov(windows.flatten(1).double().T)
        values = torch.zeros(w, w * D, dtype=torch.float64)
        vectors = torch.eye(w * D, dtype=torch.float64).repeat(w, 1, 1)
        for n in range(1, w + 1):  # of windows of n states, what is beyond them being zero
            k = n * D
            values[n - 1, :k], vectors[n - 1, :k, :k] = torch.linalg.eigh(covariance[:k, :k])
        self.register_buffer("values", values.clamp_min(0).float())
        self.register_buffer("vectors", vectors.float())

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Maps noisy windows (*, w D), times () or one for each window, and the masks of their
        states (*, w) to noise (*, w D)."""
        (process,) = self._process
        times = t.reshape(*t.shape, *(1,) * (x.ndim - t.ndim))
        mu, sigma = process.mu(times), process.sigma(times)

        length = c.sum(dim=-1).long() - 1
        values, Q = self.values[length], self.vectors[length]
        root = torch.sqrt(mu**2 * values + sigma**2)

        z = _times(Q.mT, x) / root
        F = _times(Q.mT, self.score(_times(Q, z), t, c))

        return _times(Q, (sigma * z - mu * values.sqrt() * F) / root)


def _times(A: Tensor, x: Tensor) -> Tensor:
    """Multiplies matrices (*, n, m) and vectors (*, m)."""
    return (A @ x[..., None])[..., 0]
