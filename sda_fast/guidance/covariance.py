r"""The covariance of an observation given a noisy trajectory, and its inverse.

.. math:: M = \Sigma_y + \frac{\sigma^2}{\mu^2} A \Gamma A^\top
"""

__all__ = ["DENSE", "Covariance", "check_covariance", "jacobian_product"]

import warnings
from collections.abc import Callable

import torch
from torch import Size, Tensor

from .._calls import stands_for_call
from .base import Vjp
from .solve import conjugate_gradient
from .spectrum import Spectrum

# Up to so many observed elements the covariance is made and factored, in float64.
DENSE = 1024


def _is_linear(A: Callable[[Tensor], Tensor]) -> bool:
    """Says whether an operator is known to be linear, and by its own product."""
    return getattr(A, "linear", False) and stands_for_call(A, "vjp")


def jacobian_product(A: Callable[[Tensor], Tensor], x: Tensor) -> Vjp:
    """Returns the product with the Jacobian of an observation operator at x.

    Arguments:
        A: The operator. A linear one (`A.linear`) is its own Jacobian.
        x: Trajectories, with shape (B, *event).
    """
    if _is_linear(A):
        return A

    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        y = A(leaf.clone())
        dummy = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, leaf, dummy, create_graph=True)

    def product(v: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(pulled, dummy, v, retain_graph=True)
        return gradient

    return product


def check_covariance(covariance: Tensor, size: int) -> None:
    """Checks the covariance of an observation of `size` elements."""
    if covariance.shape != (size, size):
        raise ValueError(
            f"covariance must have shape ({size}, {size}) for the {size} elements of y, one "
            f"observation for all samples, got {tuple(covariance.shape)}"
        )
    scale = float(covariance.abs().max()) if size else 1.0
    if not bool(((covariance - covariance.mT).abs() <= 1e-6 * scale).all()):
        raise ValueError("covariance must be symmetric")
    if bool(torch.linalg.cholesky_ex(covariance.double())[1]):
        raise ValueError("covariance must be positive definite")


class Covariance:
    r"""The covariance M of an observation, and products with its inverse.

    All is in units of the noise, a geometric mean of its deviations, whose square may overflow or
    underflow.

    Arguments:
        noise: :math:`\Sigma_y`, with shape (m, m), or its diagonal, with shape (m).
        gamma: The spectrum of the prior's covariance, or the diagonal that takes the place of
            :math:`A \Gamma A^\top`, with shape (m).
        A: The observation operator.
        observed: Which elements are observed, with shape (m); the others' residual is zero.
        tolerance: The relative residual to which a system is solved that is too large to factor.
    """

    def __init__(
        self,
        noise: Tensor,
        gamma: Spectrum | Tensor,
        A: Callable[[Tensor], Tensor],
        observed: Tensor,
        tolerance: float,
    ):
        self.noise, self.gamma, self.A = noise, gamma, A
        self.observed, self.tolerance = observed, tolerance
        variance = noise.diagonal() if noise.ndim == 2 else noise
        self._unit = float((variance.double().log().mean() / 2).exp())
        self._projected: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    @property
    def is_dense(self) -> bool:
        """Whether M is the same for all trajectories, and small enough to factor."""
        linear = not isinstance(self.gamma, Spectrum) or _is_linear(self.A)
        return linear and self.observed.numel() <= DENSE

    def inverse(self, residual: Tensor, x: Tensor, transposed: Vjp, ratio: float) -> Tensor:
        r"""Returns :math:`M^{-1} r`.

        Arguments:
            residual: r, with shape (B, *observation), zero where nothing is observed.
            x: The denoised trajectories, with shape (B, *event).
            transposed: The vector-Jacobian product of A there.
            ratio: :math:`\sigma / \mu`.
        """
        flat = residual.flatten(1) / self._unit
        if self.is_dense:
            factor = torch.linalg.cholesky(self._dense(x, ratio))
            solution = torch.cholesky_solve(flat.double().T, factor).T.to(flat.dtype)
        else:
            solution = self._iterated(flat, x, transposed, residual.shape, ratio)
        return (solution / self._unit).reshape(residual.shape)

    def _iterated(
        self, flat: Tensor, x: Tensor, transposed: Vjp, shape: Size, ratio: float
    ) -> Tensor:
        r"""Solves :math:`M u = r`"""
        spread = self._spread(x, transposed, shape, ratio)
        noise = (self.noise.double() / self._unit**2).to(flat.dtype)

        def apply(u: Tensor) -> Tensor:
            u = self.observed * u
            noisy = u @ noise if noise.ndim == 2 else noise * u
            return self.observed * (noisy + ratio**2 * spread(u))

        solution = conjugate_gradient(apply, flat, min(2 * flat.shape[1], 500), self.tolerance)
        size = flat.norm(dim=1).clamp_min(torch.finfo(flat.dtype).tiny)
        left = (apply(solution) - flat).norm(dim=1) / size
        bad = left[left > 10 * self.tolerance]  # one that is NaN is so in the solution
        if len(bad) > 0:
            warnings.warn(
                "the covariance of the observation was inverted to a relative residual of "
                f"{float(bad.max()):.1g} only, not {self.tolerance:g}: the guidance is less "
                "exact than asked",
                RuntimeWarning,
                stacklevel=3,
            )
        return solution

    def _spread(self, x: Tensor, transposed: Vjp, shape: Size, ratio: float) -> Vjp:
        r"""Returns the product with :math:`A \Gamma A^\top`, or with what takes its place."""
        gamma, unit = self.gamma, self._unit
        if not isinstance(gamma, Spectrum):
            diagonal = gamma.double() / unit**2
            return lambda u: diagonal.to(u.dtype) * u
        forward = jacobian_product(self.A, x)
        return lambda u: (
            forward(gamma.multiply(transposed(u.reshape(shape)) / unit, ratio)).flatten(1) / unit
        )

    def _dense(self, x: Tensor, ratio: float) -> Tensor:
        """Returns M, with shape (m, m), with the identity where nothing is observed."""
        noise = self.noise.double() / self._unit**2
        M = noise if noise.ndim == 2 else torch.diag(noise)
        if isinstance(self.gamma, Spectrum):
            HQ, HH = self._project(self.gamma, x)
            values, rest = self.gamma.gamma(ratio)
            M = M + ratio**2 * ((HQ * (values - rest)) @ HQ.T + rest * HH)
        else:
            M = M + ratio**2 * torch.diag(self.gamma.double() / self._unit**2)

        both = self.observed[:, None] & self.observed
        return torch.where(both, M, torch.eye(len(M), dtype=M.dtype, device=M.device))

    def _project(self, spectrum: Spectrum, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns A Q and A A^T, made once for each type and device of trajectories, and anew when
        the operator has changed. That shows in what it sees of a random trajectory, whatever it
        keeps its numbers in."""
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(1, *x.shape[1:], dtype=torch.float64, generator=generator).to(x)
        seen = self.A(probe).clone()  # it may be memory that A returns each time
        key = x.dtype, x.device
        kept = self._projected.get(key)
        if kept is None or not torch.equal(kept[0], seen):
            vectors = spectrum.vectors.movedim(-1, 0).to(x.dtype)
            HQ = self.A(vectors).flatten(1).T / self._unit
            m = self.observed.numel()
            unit = torch.eye(m, dtype=x.dtype, device=x.device).reshape(m, *seen.shape[1:])
            rows = self.A.vjp(x[:1].expand(m, *x.shape[1:]), unit)  # type: ignore[attr-defined]
            HH = self.A(rows / self._unit).flatten(1) / self._unit
            kept = self._projected[key] = seen, HQ.double(), HH.double()
        return kept[1], kept[2]
