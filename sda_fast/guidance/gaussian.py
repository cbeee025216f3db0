"""Guidance by a Gaussian likelihood, and by diffusion posterior sampling, its baseline."""

__all__ = ["DPSGaussianScore", "GaussianScore"]

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._arguments import parameter
from .._kept import keeping, version
from .base import Level, Vjp
from .covariance import Covariance, check_covariance
from .observed import ObservationGuidance
from .spectrum import Spectrum


class GaussianScore(ObservationGuidance):
    r"""Guides by a Gaussian likelihood, as score-based data assimilation does.

    .. math:: p(y \mid x(t)) = N \left( y \mid A(\hat x),
        \Sigma_y + \frac{\sigma(t)^2}{\mu(t)^2} A \Gamma A^\top \right)

    With a number or a diagonal `gamma`, :math:`A \Gamma A^\top` is replaced by it, as the paper
    does. With the :class:`Spectrum` of the prior's covariance, :math:`\Gamma` is the true one, and
    where prior and observation are linear and Gaussian the guidance is exact at every noise level.

    References:
        | Score-based Data Assimilation (Rozet & Louppe, 2023), algorithm 3
        | https://arxiv.org/abs/2306.10574

    Arguments:
        y: The observation, with shape (*observation), or without `covariance` and spectrum one for
            each sample, (B, *observation); NaN where nothing was observed.
        A: The observation operator, from trajectories (B, *event) to (B, *observation): a callable
            or one of :mod:`sda_fast.observation`.
        std: The standard deviation of the observation noise, broadcastable with y.
        sde: The noise process of the prior.
        gamma: The number or the diagonal :math:`\Gamma`, broadcastable with y, or the spectrum of
            the prior's covariance.
        detach: Whether to leave the Jacobian of the network out of the gradient.
        covariance: The covariance :math:`\Sigma_y` of the observation noise, with shape
            (m, m) for the m elements of y, in place of `std`, which is then to be None.
        tolerance: The relative residual to which a system with a covariance is solved.

    Raises:
        ValueError: y is infinite; std or gamma is not a number of the right sign; the covariance
            is not symmetric and positive definite.
    """

    std: Tensor | None
    gamma: Tensor | Spectrum
    covariance: Tensor | None

    def __init__(
        self,
        y: Tensor,
        A: Callable[[Tensor], Tensor],
        std: float | Tensor | None,
        sde: Any,
        gamma: float | Tensor | Spectrum = 1e-2,
        detach: bool = False,
        *,
        covariance: Tensor | None = None,
        tolerance: float = 1e-5,
    ):
        super().__init__(y, A, sde, detach)

        if (std is None) == (covariance is None):
            raise ValueError("std or covariance must be given, one of them and the other None")
        self.register_buffer("std", None if std is None else parameter("std", std, self.y))
        self.register_buffer("covariance", covariance)
        if self.covariance is not None:
            check_covariance(self.covariance, self.y.numel())
        if isinstance(gamma, Spectrum):
            self.gamma = gamma
        else:
            self.register_buffer("gamma", parameter("gamma", gamma, self.y, "zero or positive"))

        self.tolerance = tolerance
        self._system: tuple[Any, Covariance] | None = None

    def cotangent(self, x: Tensor, mu: Level, sigma: Level, vjp: Vjp) -> Tensor:
        r"""Returns :math:`A^\top (\Sigma_y + (\sigma / \mu)^2 A \Gamma A^\top)^{-1}
        (y - A(\hat x))`."""
        prediction, transposed = self.predict(x)
        ratio = sigma / mu

        if self.std is not None and not isinstance(self.gamma, Spectrum):
            y = self.y.to(prediction.dtype)
            return transposed(ops.residual(y, prediction, self.std, self.gamma, ratio))

        covariance, residual = self._covariance(prediction), self.residual(prediction)
        return transposed(covariance.inverse(residual, x, transposed, float(ratio)))

    @keeping()
    def _covariance(self, prediction: Tensor) -> Covariance:
        """Returns the covariance of the observation, made anew when its parts have changed."""
        if self.y.ndim >= prediction.ndim:
            given = "gamma, a Spectrum," if self.covariance is None else "covariance"
            raise ValueError(
                f"with {given} y must be one observation for all samples, of shape "
                f"{tuple(prediction.shape[1:])}, got shape {tuple(self.y.shape)}"
            )
        parts = (self.y, self.std, self.covariance, self.gamma)
        shape = prediction.shape[1:]
        versions = [(id(part), *map(version, _tensors(part))) for part in parts]
        made_of = shape, self.tolerance, id(self.A), versions
        system = self._system  # read once: another thread may put its own
        if system is None or system[0] != made_of:

            def flat(value: Tensor) -> Tensor:
                return value.expand(shape).flatten()

            noise = self.covariance
            if noise is not None and len(noise) != shape.numel():
                raise ValueError(
                    f"with a covariance of shape {tuple(noise.shape)} A(x) must have {len(noise)} "
                    f"elements a trajectory, as y has, got {shape.numel()} of shape {tuple(shape)}"
                )
            if self.std is not None:
                noise = flat(self.std.double() ** 2)  # which may overflow or underflow else
            assert noise is not None
            gamma = self.gamma if isinstance(self.gamma, Spectrum) else flat(self.gamma)
            observed = flat(~self.y.isnan())
            covariance = Covariance(noise, gamma, self.A, observed, self.tolerance)
            system = self._system = made_of, covariance
        return system[1]


def _tensors(part: Any) -> Iterable[Tensor]:
    """Returns the tensors that a part of a system is known by."""
    if isinstance(part, nn.Module):
        return chain(part.parameters(), part.buffers())
    return (part,) if isinstance(part, Tensor) else ()


class DPSGaussianScore(ObservationGuidance):
    r"""Guides by diffusion posterior sampling, the baseline.

    .. math:: \nabla_{x(t)} \log p(y \mid x(t)) \approx
        -\zeta \frac{\nabla_{x(t)} \| y - A(\hat x) \|^2}{\| y - A(\hat x) \|}

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        y: The observation, with shape (*observation); NaN where nothing was observed.
        A: The observation operator, from trajectories (B, *event) to (B, *observation): a callable
            or one of :mod:`sda_fast.observation`.
        sde: The noise process of the prior.
        zeta: The strength :math:`\zeta` of the guidance.
        per_sample: Whether the norm is that of each sample, as in the paper. The default is the
            norm over the whole batch, as in the reference package; there the guidance of a
            sample depends on the others. For a batch of one both are the same.

    Raises:
        ValueError: y is infinite.
    """

    def __init__(
        self,
        y: Tensor,
        A: Callable[[Tensor], Tensor],
        sde: Any,
        zeta: float = 1.0,
        *,
        per_sample: bool = False,
    ):
        super().__init__(y, A, sde)

        self.zeta = zeta
        self.per_sample = per_sample

    def separable(self, x: Tensor) -> bool:
        """Says whether some samples of a batch can be guided without the others: not where they
        share a norm."""
        return self.per_sample and super().separable(x)

    def cotangent(self, x: Tensor, mu: Level, sigma: Level, vjp: Vjp) -> Tensor:
        r"""Returns :math:`2 \zeta A^\top (y - A(\hat x)) / \| y - A(\hat x) \|`."""
        prediction, transposed = self.predict(x)

        error = self.residual(prediction)
        if self.per_sample:
            norm = error.flatten(1).norm(dim=1).reshape(-1, *(1,) * (error.ndim - 1))
        else:
            norm = error.norm()

        # nothing pulls where nothing is observed, or all of it is met
        return transposed(2 * self.zeta * error / norm.clamp_min(torch.finfo(error.dtype).tiny))
