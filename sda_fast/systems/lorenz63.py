"""The Lorenz 1963 system, the paper's first test bed."""

__all__ = ["Lorenz63", "NoisyLorenz63"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .._arguments import floating
from .markov import DiscreteODE, gaussian_log_prob, normal

# The mean and standard deviation of a state on the attractor, by which it is standardised.
MEAN = (0.0, 0.0, 25.0)
STD = (8.0, 9.0, 8.6)


class Lorenz63(DiscreteODE):
    r"""The Lorenz 1963 model of convection.

    .. math::
        \dot a & = \sigma (b - a) \\
        \dot b & = a (\rho - c) - b \\
        \dot c & = a b - \beta c

    References:
        | Deterministic Nonperiodic Flow (Lorenz, 1963)
        | https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2

    Arguments:
        sigma: The Prandtl number.
        rho: The relative Rayleigh number.
        beta: The aspect of the convection cells.
        kwargs: Keyword arguments of :class:`DiscreteODE`: `dt` and `steps`.
    """

    def __init__(self, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3, **kwargs: Any):
        super().__init__(**kwargs)
        self.sigma, self.rho, self.beta = sigma, rho, beta

    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws initial states from a Gaussian around the attractor, with shape (*shape, 3)."""
        covariance = torch.tensor([[64.0, 50.0, 0.0], [50.0, 81.0, 0.0], [0.0, 0.0, 75.0]])
        z = torch.randn(*shape, 3, generator=generator)

        return torch.tensor(MEAN) + z @ torch.linalg.cholesky(covariance).T

    def f(self, x: Tensor) -> Tensor:
        """Returns the time derivative of states (*, 3)."""
        a, b, c = x.unbind(dim=-1)
        return torch.stack(
            (self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c), dim=-1
        )

    @staticmethod
    def preprocess(x: Tensor) -> Tensor:
        """Standardises physical states (*, 3)."""
        x = floating(x)
        return (x - x.new_tensor(MEAN)) / x.new_tensor(STD)

    @staticmethod
    def postprocess(x: Tensor) -> Tensor:
        """Maps standardised states (*, 3) to physical ones."""
        x = floating(x)
        return x.new_tensor(MEAN) + x.new_tensor(STD) * x


class NoisyLorenz63(Lorenz63):
    r"""The Lorenz 1963 model with Gaussian noise of variance `dt` added at every transition."""

    def moments(self, x: Tensor) -> tuple[Tensor, float]:
        """Returns the mean and the standard deviation of the states that follow x (*, 3)."""
        return super().transition(x), math.sqrt(self.dt)

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Draws the states that follow x (*, 3)."""
        return normal(*self.moments(x), generator=generator)

    def log_prob(self, x1: Tensor, x2: Tensor) -> Tensor:
        r"""Returns the log-density :math:`\log p(x_2 \mid x_1)` of transitions, with shape (*)."""
        return gaussian_log_prob(x2, *self.moments(x1))
