"""What is observed of a trajectory in each case. Velocities and noise are physical."""

__all__ = ["CASES", "Case"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from sda_fast.observation import (
    BlockMean,
    ObservationOperator,
    Pointwise,
    Subsample,
    Vorticity,
)
from sda_fast.systems.flow import vorticity

EVERY = slice(None)
SATURATION = 4.0  # the vorticity at which an instrument shows half of its range


@dataclass(frozen=True)
class Case:
    """An observation of trajectories.

    Arguments:
        title: What is observed.
        observe: Returns the operator A for trajectories of a shape (L, 2, N, N).
        picture: Returns what is drawn of an observation: fields (L, h, w), or velocities
            (L, 2, h, w) at the points of a grid.
        std: The standard deviation of the noise.
        length: The number L of states.
        seen: Returns where there is an observation, for a shape of y; everywhere by default.
        shifts: By how many multiples of N / `shifts` points along y the observed field may have
            been shifted: which of them is not known.
        members: The number of members that are drawn by default.
        gamma: The guidance's, see :class:`sda_fast.GaussianScore`. The more of a state is observed,
            the larger: with 0.01 the unobserved part of "gap" diverges.
        shown: The states that the figure has, by default at most nine, evenly.
    """

    title: str
    observe: Callable[[Size], ObservationOperator]
    picture: Callable[[Tensor], Tensor]
    std: float = 0.1
    length: int = 14
    seen: Callable[[Size], Tensor] | None = None
    shifts: int = 1
    members: int = 4
    gamma: float = 1e-2
    shown: Sequence[int] | None = None


def points(event: Size) -> ObservationOperator:
    """Velocities at 8 × 8 points: the paper's every 8th of a grid of 64 × 64."""
    grid = slice(event[-1] // 16, None, event[-1] // 8)
    return Subsample(event, EVERY, EVERY, grid, grid)


def blocks(event: Size) -> ObservationOperator:
    """Mean velocities of 8 × 8 blocks."""
    return BlockMean(event, [event[-1] // 8] * 2)


def saturating(event: Size) -> ObservationOperator:
    r"""The vorticity :math:`\omega / (4 + |\omega|)` at every other point: halfway to saturation at
    about its standard deviation."""
    omega = Vorticity(event)
    other = Subsample(omega.shape, EVERY, slice(None, None, 2), slice(None, None, 2))
    return Pointwise(saturate, other.shape, saturation_slope) @ other @ omega


def saturate(x: Tensor) -> Tensor:
    return x / (SATURATION + x.abs())


def saturation_slope(x: Tensor) -> Tensor:
    return SATURATION / (SATURATION + x.abs()) ** 2


def around_gap(shape: Size) -> Tensor:
    """Everywhere but in the middle quarter of the square."""
    seen, n = torch.ones(shape, dtype=torch.bool), shape[-1]
    seen[..., n // 4 : -(n // 4), n // 4 : -(n // 4)] = False
    return seen


def at_times(times: slice) -> Callable[[Size], Tensor]:
    def seen(shape: Size) -> Tensor:
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[times] = True
        return mask

    return seen


#: The cases by name.
CASES = {
    "sparse": Case("velocities at 8 × 8 points", points, lambda y: y),
    "blocks": Case("mean velocities of 8 × 8 blocks", blocks, vorticity),
    "gap": Case("velocities around a gap", Subsample, vorticity, seen=around_gap, gamma=0.1),
    "saturating": Case(
        "a saturating function of the vorticity", saturating, lambda y: y, std=0.05, gamma=0.03
    ),
    "interpolation": Case(
        "every 8th of 17 states",
        Subsample,
        vorticity,
        length=17,
        seen=at_times(slice(None, None, 8)),
        gamma=0.1,
    ),
    "long": Case(
        "velocities at 8 × 8 points of every 5th of 32 states",
        points,
        lambda y: y,
        length=32,
        seen=at_times(slice(None, None, 5)),
        shown=tuple(sorted((*range(0, 32, 5), *range(2, 32, 5)))),  # observed, and between
    ),
    "forecast": Case(
        "the first 5 of 14 states", Subsample, vorticity, seen=at_times(slice(5)), gamma=0.1
    ),
    "ambiguous": Case(
        "velocities at 8 × 8 points, from one of four places",
        points,
        lambda y: y,
        length=8,
        shifts=4,
        members=8,
    ),
}
