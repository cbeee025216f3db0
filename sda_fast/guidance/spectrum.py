r"""The covariance of a prior, by its eigenvalues."""

__all__ = ["Spectrum"]

import math

import torch
from torch import Tensor, nn


class Spectrum(nn.Module):
    r"""A covariance :math:`\Sigma_x = Q \operatorname{diag}(\lambda) Q^\top +
    \lambda_0 (I - Q Q^\top)` of trajectories, of low rank beside white noise.

    With it the denoised trajectory's covariance is :math:`V[x \mid x(t)] = (\sigma / \mu)^2
    \Gamma`, where (Rozet & Louppe, 2023, section 3.2)

    .. math:: \Gamma = Q \operatorname{diag} \left( \frac{\lambda}{\lambda + \sigma^2 / \mu^2}
        \right) Q^\top + \frac{\lambda_0}{\lambda_0 + \sigma^2 / \mu^2} (I - Q Q^\top) + f I

    The floor f is 0 for a denoiser that is exact. A network's is not: an error of its noise
    estimate of variance f is one of the denoised trajectory of variance :math:`f \sigma^2 / \mu^2`,
    which at the first steps is larger than all of :math:`\Sigma_x`.

    Arguments:
        vectors: The eigenvectors, orthonormal, with shape (*event, r).
        values: Their eigenvalues, with shape (r), zero or positive.
        rest: The eigenvalue :math:`\lambda_0` of all other directions.
        floor: The variance f of the error of the network's noise estimate.

    Raises:
        ValueError: The shapes do not fit, the vectors are not orthonormal, or a value is negative
            or not finite.
    """

    vectors: Tensor
    values: Tensor

    def __init__(self, vectors: Tensor, values: Tensor, rest: float = 0.0, floor: float = 0.0):
        super().__init__()

        if vectors.ndim < 2 or values.shape != vectors.shape[-1:]:
            raise ValueError(
                "vectors and values must have shapes (*event, r) and (r), got "
                f"{tuple(vectors.shape)} and {tuple(values.shape)}"
            )
        good = (values >= 0) & values.isfinite()
        if not bool(good.all()):
            raise ValueError(
                f"values must be zero or positive, and finite, got {values[~good][0].item()}"
            )
        for name, value in (("rest", rest), ("floor", floor)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be zero or positive, and finite, got {value}")
        q = vectors.flatten(0, -2).double()
        error = float((q.T @ q - torch.eye(q.shape[1], device=q.device)).abs().max())
        if not error < 1e-3:
            raise ValueError(f"vectors must be orthonormal, but Q^T Q - I is as large as {error:g}")

        self.register_buffer("vectors", vectors)
        self.register_buffer("values", values)
        self.rest = float(rest)
        self.floor = float(floor)

    @classmethod
    def estimate(cls, x: Tensor, rank: int | None = None, floor: float = 1e-2) -> "Spectrum":
        r"""Estimates the covariance of trajectories from data, as probabilistic principal
        component analysis does (Tipping & Bishop, 1999).

        Arguments:
            x: Trajectories, standardised as the prior's are, with shape (n, *event), n at least 2.
            rank: The number r of directions that are kept; the variance of the others becomes
                white noise. By default all that the data have.
            floor: The variance of the error of the network's noise estimate.
        """
        if x.ndim < 2 or len(x) < 2:
            raise ValueError(f"x must have shape (n, *event) with n >= 2, got {tuple(x.shape)}")
        flat = x.double().flatten(1)
        flat = flat - flat.mean(dim=0)
        n, size = flat.shape
        most = min(n - 1, size)
        rank = most if rank is None else rank
        if not 1 <= rank <= most:
            raise ValueError(f"rank must be from 1 to {most}, got {rank}")

        _, singular, rows = torch.linalg.svd(flat, full_matrices=False)
        values = singular**2 / (n - 1)
        rest = float(values[rank:].sum()) / (size - rank) if size > rank else 0.0
        vectors = rows[:rank].T.reshape(*x.shape[1:], rank)

        return cls(vectors.to(x.dtype), values[:rank].to(x.dtype), rest, floor)

    def gamma(self, ratio: float) -> tuple[Tensor, float]:
        r"""Returns the eigenvalues of :math:`\Gamma` in the directions Q, with shape (r), and the
        one in all others, for the ratio :math:`\sigma / \mu`."""
        rest = self.rest / (self.rest + ratio**2) if self.rest > 0 else 0.0
        values = self.values.double()
        scaled = values / (values + ratio**2).clamp_min(math.ulp(0.0))
        return scaled + self.floor, rest + self.floor

    def multiply(self, x: Tensor, ratio: float) -> Tensor:
        r"""Returns :math:`\Gamma x` for x with shape (B, *event)."""
        q = self.vectors.flatten(0, -2).to(x.dtype)
        values, rest = self.gamma(ratio)
        flat = x.flatten(1)
        along = flat @ q
        scaled = (along * (values - rest).to(x.dtype)) @ q.T + rest * flat
        return scaled.reshape(x.shape)
