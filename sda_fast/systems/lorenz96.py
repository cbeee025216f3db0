"""The Lorenz 1996 systems, of one scale and of two."""

__all__ = ["Lorenz96", "TwoScaleLorenz96"]

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


class TwoScaleLorenz96(DiscreteODE):
    r"""The Lorenz 1996 model of two scales: J fast sites, of convection, to each slow one.

    .. math::
        \dot x_i & = (x_{i-1} - x_{i+2}) x_{i+1} - x_i + F - \frac{h c}{b} \sum_j y_{j,i} \\
        \dot y_m & = c b \, (y_{m+1} - y_{m-2}) y_{m-1} - c y_m + \frac{h c}{b} x_{i(m)}

    where the fast sites, numbered :math:`m = j + J i` for j = 0, ..., J - 1, make one circle. The
    products conserve :math:`\sum_i x_i^2 + \sum_m y_m^2`, and so does the coupling. Sites are
    numbered as in :class:`Lorenz96`.

    The states of the Markov chain are the slow sites, then the fast ones. The slow sites alone are
    not a Markov chain: with `hidden`, they are all that :meth:`trajectory` shows.

    References:
        | Predictability: a problem partly solved (Lorenz, 1996)

    Arguments:
        n: The number of slow sites.
        J: The number of fast sites to each.
        F: The forcing.
        h: The strength of the coupling.
        b: The ratio of the amplitudes, slow to fast.
        c: The ratio of the speeds, fast to slow.
        hidden: Whether the fast sites are hidden.
        dt: The time between two states.
        steps: The number of integration steps between two states.
    """

    def __init__(
        self,
        n: int = 36,
        J: int = 10,
        F: float = 10.0,
        h: float = 1.0,
        b: float = 10.0,
        c: float = 10.0,
        hidden: bool = False,
        dt: float = 0.05,
        steps: int = 10,
    ):
        super().__init__(dt, steps)
        if J < 1:
            raise ValueError(f"J must be at least 1, got {J}")
        if not b > 0:
            raise ValueError(f"b must be positive, got {b}")
        self.n, self.J, self.F = n, J, F
        self.h, self.b, self.c, self.hidden = h, b, c, hidden

    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws initial states, with shape (*shape, n + n J): normal, of deviation 1 at slow sites
        and 1 / b at fast ones."""
        scale = torch.ones(self.n * (1 + self.J))
        scale[self.n :] /= self.b
        return torch.randn(*shape, len(scale), generator=generator) * scale

    def f(self, x: Tensor) -> Tensor:
        """Returns the time derivative of states (*, n + n J)."""
        x, y = x.split((self.n, self.n * self.J), dim=-1)
        exchange = self.h * self.c / self.b

        before, after, after2 = (x.roll(shift, dims=-1) for shift in (1, -1, -2))
        slow = (before - after2) * after - x + self.F
        slow = slow - exchange * y.unflatten(-1, (self.n, self.J)).sum(dim=-1)

        before2, before, after = (y.roll(shift, dims=-1) for shift in (2, 1, -1))
        fast = self.c * self.b * (after - before2) * before - self.c * y
        fast = fast + exchange * x.repeat_interleave(self.J, dim=-1)

        return torch.cat((slow, fast), dim=-1)

    def visible(self, x: Tensor) -> Tensor:
        """Returns what is seen of states (*, n + n J): the slow sites (*, n) if the others are
        hidden."""
        return x[..., : self.n] if self.hidden else x

    def trajectory(
        self, x: Tensor, length: int, last: bool = False, *, generator: Generator | None = None
    ) -> Tensor:
        """Integrates the states that follow x (*, n + n J).

        Returns:
            What is visible of them, with shape (length, *, n) or (length, *, n + n J); or, with
            `last`, the last state, whole, from which the trajectory goes on.
        """
        states = super().trajectory(x, length, last, generator=generator)
        return states if last else self.visible(states)
