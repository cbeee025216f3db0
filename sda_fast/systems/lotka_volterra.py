"""The Lotka-Volterra system."""

__all__ = ["LotkaVolterra"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .markov import DiscreteODE


class LotkaVolterra(DiscreteODE):
    r"""The Lotka-Volterra model of prey u and predators v, in the logarithms of their numbers.

    .. math::
        \frac{d \log u}{dt} & = \alpha - \beta v \\
        \frac{d \log v}{dt} & = \delta u - \gamma

    Arguments:
        alpha: The growth rate of the prey.
        beta: The rate at which predators take prey.
        delta: The growth rate of predators for each prey.
        gamma: The death rate of predators.
        kwargs: Keyword arguments of :class:`DiscreteODE`: `dt` and `steps`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        delta: float = 1.0,
        gamma: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.alpha, self.beta, self.delta, self.gamma = alpha, beta, delta, gamma

    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws log-numbers uniformly from [0, 1], with shape (*shape, 2)."""
        return torch.rand(*shape, 2, generator=generator)

    def f(self, x: Tensor) -> Tensor:
        """Returns the time derivative of log-numbers (*, 2)."""
        prey, predators = x.exp().unbind(dim=-1)
        return torch.stack(
            (self.alpha - self.beta * predators, self.delta * prey - self.gamma), dim=-1
        )
