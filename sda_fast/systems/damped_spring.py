"""The damped spring, a linear-Gaussian chain."""

__all__ = ["DampedSpring"]

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from .._arguments import floating
from .markov import MarkovChain, gaussian_log_prob, normal


class DampedSpring(MarkovChain):
    r"""The linear dynamics of a mass on a spring, subject to drag and to a fluctuating wind.

    .. math:: x_i \sim N(A x_{i-1} + b, \Sigma_x), \qquad x_0 \sim N(\mu_0, \Sigma_0)

    The state is position, velocity, acceleration and wind. It is the field's linear-Gaussian test
    bed: every law is known in closed form.

    Arguments:
        dt: The time between two states.
    """

    def __init__(self, dt: float = 0.01):
        self.mu_0 = torch.tensor([1.0, 0.0, 0.0, 0.0])
        self.Sigma_0 = torch.eye(4)
        self.A = torch.tensor(
            [
                [1.0, dt, dt**2 / 2, 0.0],
                [0.0, 1.0, dt, 0.0],
                [-0.5, -0.1, 0.0, 0.2],
                [0.0, 0.0, 0.0, 0.99],
            ]
        )
        self.b = torch.zeros(4)
        self.Sigma_x = torch.diag(torch.tensor([0.1, 0.1, 0.1, 1.0])) * dt

    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws initial states, with shape (*shape, 4)."""
        mean = self.mu_0.expand(*shape, 4)
        return normal(mean, self.Sigma_0.diagonal().sqrt(), generator)

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Draws the states that follow x (*, 4)."""
        return normal(*self.moments(x), generator=generator)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of the states that follow x (*, 4), and their standard deviations."""
        x = floating(x)
        return x @ self.A.to(x).T + self.b.to(x), self.Sigma_x.diagonal().to(x).sqrt()

    def log_prob(self, x1: Tensor, x2: Tensor) -> Tensor:
        r"""Returns the log-density :math:`\log p(x_2 \mid x_1)` of transitions, with shape (*)."""
        return gaussian_log_prob(x2, *self.moments(x1))
