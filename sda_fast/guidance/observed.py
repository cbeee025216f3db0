"""What guidance modules have in common that know an observation y of A(x)."""

__all__ = ["ObservationGuidance", "observe"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor

from .._arguments import checked, fits
from .._calls import own
from ..observation import ObservationOperator
from .base import Guidance, Vjp, by_autograd


def observe(A: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Vjp]:
    """Predicts what is observed of denoised trajectories, and returns the vector-Jacobian product.

    Arguments:
        A: The observation operator. One of :mod:`sda_fast.observation` has its own product `vjp`,
            any other callable is differentiated by autograd.
        x: Denoised trajectories, with shape (B, *event).

    Returns:
        The prediction, with shape (B, *observation), and a function from cotangents of that shape
        to those of x.
    """
    product = own(A, "vjp")
    if product is None:
        return by_autograd("A", A, x)
    with torch.no_grad():
        return A(x), lambda cotangent: product(x, cotangent)


class ObservationGuidance(Guidance):
    r"""Guidance by an observation.

    Arguments:
        y: The observation, with shape (*observation); NaN where nothing was observed.
        A: The observation operator, from trajectories (B, *event) to (B, *observation): a callable
            or one of :mod:`sda_fast.observation`.
        sde: The noise process of the prior.
        detach: Whether to leave the Jacobian of the network out of the gradient.

    Raises:
        ValueError: y is infinite.
        TypeError: y is complex.
    """

    y: Tensor

    def __init__(self, y: Tensor, A: Callable[[Tensor], Tensor], sde: Any, detach: bool = False):
        super().__init__(sde, detach)
        self.register_buffer("y", checked(y))
        self.A = A

    def separable(self, x: Tensor) -> bool:
        """Says whether some samples of a batch can be guided without the others: neither the
        operator nor the observation is that of the whole batch."""
        try:
            with torch.no_grad():
                prediction, alone = self.A(x.clone()), self.A(x[:1].clone())
        except Exception:  # an operator of the user's own
            return False
        one_for_all = self.y.ndim < prediction.ndim or self.y.shape[0] == 1
        if not one_for_all or prediction.shape[:1] != x.shape[:1]:
            return False
        return torch.allclose(prediction[:1], alone, rtol=1e-3, atol=1e-6, equal_nan=True)

    def predict(self, x: Tensor) -> tuple[Tensor, Vjp]:
        """Predicts what is observed of denoised trajectories, as :func:`observe` does.

        Raises:
            ValueError: It does not fit to y.
        """
        prediction, vjp = observe(self.A, x)
        y = self.y
        if prediction.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"A must map each of the {len(x)} trajectories by itself, from shape "
                f"{tuple(x.shape)} to ({len(x)}, *observation), got {tuple(prediction.shape)}"
            )
        if not fits(y.shape, prediction.shape):
            raise ValueError(
                f"y has shape {tuple(y.shape)}, but A(x) has shape {tuple(prediction.shape)}: "
                "the last dimensions of A(x) must be those of y"
            )
        shape = self.A.shape if isinstance(self.A, ObservationOperator) else Size()
        if y.shape[max(y.ndim - len(shape), 0) :] != shape and shape:
            raise ValueError(
                f"y must have the shape of an observation, {tuple(shape)}, or one for each sample, "
                f"got {tuple(y.shape)}: NaN stands for what was not observed"
            )
        if y.device != prediction.device:
            raise ValueError(
                f"y is on {y.device}, but A(x) is on {prediction.device}: move the guidance module"
            )
        return prediction, vjp

    def residual(self, prediction: Tensor) -> Tensor:
        """Returns y - A(x), 0 where nothing was observed. A prediction that is NaN or infinite
        where something was is not taken for that: it gives a residual that is so."""
        y = self.y.to(prediction.dtype)
        return torch.where(y.isnan(), 0.0, y - prediction)
