"""Guidance by the moments of the denoised trajectory."""

__all__ = ["MMPSGaussianScore"]

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._arguments import parameter
from .base import Level, Vjp
from .covariance import jacobian_product
from .observed import ObservationGuidance
from .solve import conjugate_gradient, gmres

SOLVERS = {"cg": conjugate_gradient, "gmres": gmres}


class MMPSGaussianScore(ObservationGuidance):
    r"""Guides by a Gaussian likelihood with the denoised trajectory's own covariance: moment
    matching posterior sampling.

    .. math:: p(y \mid x(t)) \approx N \left( y \mid A(\hat x), \Sigma_y + A V A^\top \right),
        \qquad V[x \mid x(t)] = \frac{\sigma^2}{\mu} \frac{\partial \hat x}{\partial x(t)} =
        \frac{\sigma^2}{\mu^2} (I - \sigma J)

    with the Jacobian :math:`J` of the network's noise estimate, by products with it: each of the
    solver's iterations costs one more vector-Jacobian product.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization
          (Rozet et al., 2024)
        | https://arxiv.org/abs/2405.13712

    Arguments:
        y: The observation, with shape (*observation); NaN where nothing was observed.
        A: The observation operator, from trajectories (B, *event) to (B, *observation): a callable
            or one of :mod:`sda_fast.observation`.
        std: The standard deviation of the observation noise, broadcastable with y.
        sde: The noise process of the prior.
        iterations: The number of the solver's iterations.
        solver: "gmres", which does not mind that a network's Jacobian is not quite symmetric, or
            "cg".
        tolerance: Below which a sample's solve ends early, 0 for never: of "cg" the norm of the
            residual relative to that of y - A(x), of "gmres" that of a new direction relative to
            its product's.

    Raises:
        ValueError: y is infinite; an argument is out of its range.
    """

    std: Tensor

    def __init__(
        self,
        y: Tensor,
        A: Callable[[Tensor], Tensor],
        std: float | Tensor,
        sde: Any,
        *,
        iterations: int = 3,
        solver: str = "gmres",
        tolerance: float = 0.0,
    ):
        super().__init__(y, A, sde)

        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")

        self.register_buffer("std", parameter("std", std, self.y))

        self.iterations = iterations
        self.solver = solver
        self.tolerance = tolerance

    def cotangent(self, x: Tensor, mu: Level, sigma: Level, vjp: Vjp) -> Tensor:
        r"""Returns :math:`A^\top (\Sigma_y + A V A^\top)^{-1} (y - A(\hat x))`."""
        prediction, transposed = self.predict(x)
        forward = jacobian_product(self.A, x)

        y = self.y.to(prediction.dtype)
        observed = ~y.isnan()
        # in units of the noise, whose square may overflow or underflow
        unit = self.std.log().mean().exp().to(y.dtype)
        variance = ((self.std / unit) ** 2).to(y.dtype)

        def apply(u: Tensor) -> Tensor:
            u = observed * u.reshape(prediction.shape)
            pulled = transposed(u) / unit
            spread = (sigma / mu) ** 2 * (pulled - sigma * vjp(pulled))
            return (observed * (variance * u + forward(spread) / unit)).flatten(1)

        residual = self.residual(prediction).flatten(1) / unit
        solution = SOLVERS[self.solver](apply, residual, self.iterations, self.tolerance)
        if not isinstance(sigma, Tensor):  # then a graph is captured, which cannot say it
            self._warn_of_none(residual, solution)

        return transposed(solution.reshape(prediction.shape)) / unit

    def _warn_of_none(self, residual: Tensor, solution: Tensor) -> None:
        """Says where the solver found nothing."""
        none = (residual != 0).any(dim=1) & (solution == 0).all(dim=1)
        if bool(none.any()):
            warnings.warn(
                f"{self.solver} found no guidance for {int(none.sum())} of {len(none)} samples: "
                "the covariance of the observation is not positive along y - A(x)",
                RuntimeWarning,
                stacklevel=2,
            )
