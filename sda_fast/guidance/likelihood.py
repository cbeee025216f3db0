"""Guidance by any differentiable likelihood."""

__all__ = ["LikelihoodScore"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._calls import stands_for_call
from ..likelihood import Likelihood, instruments
from ..observation import ObservationOperator
from .base import Guidance, Level, Vjp, by_autograd
from .observed import observe


class LikelihoodScore(Guidance):
    r"""Guides by any differentiable log-likelihood of the denoised trajectory.

    .. math:: \log p(y \mid x(t)) \approx \log p(y \mid \hat x)

    What is predicted of :math:`\hat x` is not what the trajectory will be. A likelihood that takes
    a second argument is told the variance :math:`\gamma \sigma^2 / \mu^2` of that difference.

    Arguments:
        log_prob: A likelihood of :mod:`sda_fast.likelihood`, a sum of such, or any callable from
            trajectories (B, *event) to log-likelihoods (B) up to a constant; with `gamma`, from
            trajectories and the variance, a float or a tensor ().
        sde: The noise process of the prior.
        gamma: The number :math:`\gamma`. By default 1e-2 for a likelihood of
            :mod:`sda_fast.likelihood`; any other callable is then given no variance.
        detach: Whether to leave the Jacobian of the network out of the gradient.

    Raises:
        TypeError: gamma is not a number.
        ValueError: gamma is negative; the log-likelihood is not one number a trajectory, or does
            not depend on the trajectory.
    """

    def __init__(
        self,
        log_prob: Callable[..., Tensor],
        sde: Any,
        gamma: float | None = None,
        detach: bool = False,
    ):
        super().__init__(sde, detach)

        if gamma is None and isinstance(log_prob, Likelihood):
            gamma = 1e-2
        if gamma is not None:
            try:
                gamma = float(gamma)
            except (RuntimeError, TypeError, ValueError) as error:
                raise TypeError(f"gamma must be a number, got {type(gamma).__name__}") from error
            if not gamma >= 0:
                raise ValueError(f"gamma must be zero or positive, got {gamma}")

        self.log_prob = log_prob
        self.gamma = gamma

    def separable(self, x: Tensor) -> bool:
        """Says whether some samples of a batch can be guided without the others: not where the
        likelihood is that of the whole batch, each sample with its own observation for instance."""
        try:
            with torch.no_grad():
                values, alone = (self._value(y.clone(), 1.0, 1.0) for y in (x, x[:1]))
            if values.shape != x.shape[:1]:
                return False
            return torch.allclose(values[:1], alone, rtol=1e-3, atol=1e-6, equal_nan=True)
        except Exception:  # a likelihood of the user's own
            return False

    def _value(self, x: Tensor, mu: Level, sigma: Level) -> Tensor:
        if self.gamma is None:
            return self.log_prob(x)
        return self.log_prob(x, self.gamma * (sigma / mu) ** 2)

    def cotangent(self, x: Tensor, mu: Level, sigma: Level, vjp: Vjp) -> Tensor:
        r"""Returns :math:`\nabla_{\hat x} \log p(y \mid \hat x)`, of instruments one by one. Where
        a likelihood is one of a prediction, autograd is for its density alone, and what is observed
        has the product of its operator."""
        if not isinstance(self.log_prob, Likelihood):
            return self._gradient(lambda x: self._value(x, mu, sigma), x)

        variance: Any = (self.gamma or 0.0) * (sigma / mu) ** 2
        first, *others = (self._of(law, x, variance) for law in instruments(self.log_prob))
        return sum(others, first)

    def _of(self, law: Likelihood, x: Tensor, variance: Any) -> Tensor:
        """Returns the gradient of one likelihood."""
        if not stands_for_call(law, "of_prediction"):
            return self._gradient(lambda x: law(x, variance), x)

        A = law.A
        again = isinstance(A, ObservationOperator) and A._observes_again
        prediction, transposed = by_autograd("A", A, x) if again else observe(A, x)

        def density(prediction: Tensor) -> Tensor:
            return law.of_prediction(prediction, len(x), variance)

        return transposed(self._gradient(density, prediction))

    @staticmethod
    def _gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Differentiates log-likelihoods (B), by autograd."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            value = f(leaf.clone())  # it may change its input in place
            if value.shape != x.shape[:1]:
                raise ValueError(
                    f"log_prob must return one number for each of the {len(x)} trajectories, got "
                    f"shape {tuple(value.shape)}"
                )
            if not value.requires_grad:
                raise ValueError("log_prob must be differentiable, but does not depend on x")
            (gradient,) = torch.autograd.grad(value.sum(), leaf)

        return gradient
