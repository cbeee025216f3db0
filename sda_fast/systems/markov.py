"""Markov chains: the dynamical systems whose trajectories are assimilated."""

__all__ = ["DiscreteODE", "MarkovChain", "gaussian_log_prob", "normal"]

import abc
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from .._arguments import floating


def normal(mean: Tensor, std: Tensor | float, generator: Generator | None = None) -> Tensor:
    """Draws from a normal distribution of the mean's shape."""
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return mean + std * noise


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    """Returns the log-density of states (*, D) under independent normals, with shape (*)."""
    return torch.distributions.Normal(mean, std).log_prob(x).sum(dim=-1)


class MarkovChain(abc.ABC):
    """A first-order, time-invariant Markov chain.

    Every method is vectorised over leading dimensions. Randomness comes from `generator`, or from
    torch's own. States of whole numbers are taken in torch's default type.
    """

    @abc.abstractmethod
    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        r"""Draws initial states :math:`x_0 \sim p(x_0)`, with shape (*shape, *state)."""

    @abc.abstractmethod
    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        r"""Draws the next states :math:`x_{i} \sim p(x_i \mid x_{i-1})`, of the shape of x."""

    def trajectory(
        self, x: Tensor, length: int, last: bool = False, *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws the states that follow, :math:`(x_1, ..., x_n) \sim \prod_i p(x_i | x_{i-1})`.

        Arguments:
            x: The states :math:`x_0`, with shape (*, *state).
            length: The number n of transitions.
            last: Whether to return only the last state.
            generator: The source of randomness.

        Returns:
            The states, with shape (length, *, *state), or the last, with shape (*, *state).
        """
        if length < 0:
            raise ValueError(f"length must not be negative, got {length}")

        x = floating(x)
        states = x.new_empty(0 if last else length, *x.shape)

        for i in range(length):
            x = self.transition(x, generator=generator)
            if not last:
                states[i] = x

        return x if last else states

    def visible(self, x: Tensor) -> Tensor:
        """Returns what a trajectory shows of states x (*, *state): all of them, unless a system
        hides some of its variables."""
        return x

    @staticmethod
    def preprocess(x: Tensor) -> Tensor:
        """Maps physical states to the standardised ones that a network sees."""
        return x

    @staticmethod
    def postprocess(x: Tensor) -> Tensor:
        """Maps standardised states to physical ones, the inverse of `preprocess`."""
        return x

    @classmethod
    def standardisation(cls, state: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Returns what `postprocess` maps zero to and what it multiplies by, for states of a shape,
        or None of a system that is not standardised by itself."""
        if cls.postprocess is MarkovChain.postprocess:
            return None
        mean = cls.postprocess(torch.zeros(*state))
        return mean, cls.postprocess(torch.ones(*state)) - mean


class DiscreteODE(MarkovChain):
    """An ordinary differential equation, discretised by the fourth-order Runge-Kutta scheme.

    Arguments:
        dt: The time between two states.
        steps: The number of integration steps between two states.
    """

    def __init__(self, dt: float = 0.01, steps: int = 1):
        if not dt > 0:
            raise ValueError(f"dt must be positive, got {dt}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")

        self.dt = dt
        self.steps = steps

    @abc.abstractmethod
    def f(self, x: Tensor) -> Tensor:
        """Returns the time derivative of the states x, with shape (*, *state)."""

    def rk4(self, x: Tensor, dt: float) -> Tensor:
        """Integrates the states over a time `dt` by one step."""
        k1 = self.f(x)
        k2 = self.f(x + dt / 2 * k1)
        k3 = self.f(x + dt / 2 * k2)
        k4 = self.f(x + dt * k3)

        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Integrates the states over a time `dt`."""
        x = floating(x)
        for _ in range(self.steps):
            x = self.rk4(x, self.dt / self.steps)

        return x
