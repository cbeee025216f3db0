"""The Lorenz 1996 system."""

__all__ = ["Lorenz96"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from .markov import DiscreteODE


class Lorenz96(DiscreteODE):
    r"""The Lorenz 1996 model of an atmospheric quantity on a circle of latitude.

    .. math:: \dot x_i = (x_{i-1} - x_{i+2}) x_{i+1} - x_i + F

    Sites are numbered as in the reference package, the mirror image of Lorenz's own numbering.

    References:
        | Predictability: a problem partly solved (Lorenz, 1996)

    Arguments:
        n: The number of sites.
        F: The forcing.
        kwargs: Keyword arguments of :class:`DiscreteODE`: `dt` and `steps`.
    """

    def __init__(self, n: int = 32, F: float = 16.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.n, self.F = n, F

    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws standard normal initial states, with shape (*shape, n)."""
        return torch.randn(*shape, self.n, generator=generator)

    def f(self, x: Tensor) -> Tensor:
        """Returns the time derivative of states (*, n)."""
        before, after, after2 = (x.roll(shift, dims=-1) for shift in (1, -1, -2))
        return (before - after2) * after - x + self.F
