r"""Composition plans: how the scores of windows become the score of a trajectory.

A plan lists windows of a trajectory :math:`x_{1:L}` and, for every row of every window, the weight
0, +1 or -1 with which the network's noise estimate of that row enters the trajectory's,

.. math:: \epsilon_i = \sum_{n, j : \text{start}_n + j = i}
    \text{weight}_{n, j} \, \epsilon_\phi(x_{\text{start}_n : \text{start}_n + \text{length}_n})_j

Two rules make plans:

* :class:`Centre`, the published pseudo-blanket rule (Rozet & Louppe, 2023, algorithm 2): every
  interior state takes its estimate from the window around it, the states near the ends from the
  first and the last window.
* :class:`Junction`: for a Markov chain the density of a trajectory is the product of the densities
  of overlapping windows divided by the product of the densities of their overlaps,

  .. math:: p(x_{1:L}) = \frac{\prod_n p(x_{W_n})}{\prod_n p(x_{W_n \cap W_{n+1}})}

  so the score is the sum of the windows' scores minus the sum of the overlaps'. It needs a network
  that scores windows of several lengths.
"""

__all__ = ["Centre", "Composition", "Junction", "Plan"]

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """The windows of a trajectory and the weights of their rows.

    Arguments:
        states: The length L of the trajectory.
        start: The first state of each window, with shape (N), int64, ascending.
        length: The number of states of each window, with shape (N), int64, at most w.
        weight: The weights 0, +1 or -1 of the windows' rows, with shape (N, w), int8; 0 beyond a
            window's length.
    """

    states: int
    start: Tensor
    length: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or not len(self.start) == len(self.length) == len(self.weight):
            raise ValueError(
                "start, length and weight must have shapes (N), (N) and (N, w), got "
                f"{tuple(self.start.shape)}, {tuple(self.length.shape)} and "
                f"{tuple(self.weight.shape)}"
            )
        if bool((self.start.diff() < 0).any()):
            raise ValueError("start must be ascending")
        if bool((self.length < 1).any()) or bool((self.length > self.window).any()):
            raise ValueError(f"length must be between 1 and the window's {self.window} rows")
        if bool((self.start < 0).any()) or bool((self.start + self.length > self.states).any()):
            raise ValueError(f"every window must lie within the trajectory's {self.states} states")
        if bool((self.weight.abs() > self.mask).any()):
            raise ValueError("weight must be 0, +1 or -1, and 0 beyond a window's length")

    def __len__(self) -> int:
        return len(self.start)

    @property
    def window(self) -> int:
        """The number w of rows that every window is padded to."""
        return self.weight.shape[1]

    @cached_property
    def lengths(self) -> list[int]:
        """The lengths of window that the network must score."""
        return self.length.unique().tolist()

    @cached_property
    def mask(self) -> Tensor:
        """Which rows are states of their window, with shape (N, w), int8."""
        rows = torch.arange(self.window, device=self.length.device)
        return (rows < self.length[:, None]).to(torch.int8)

    def padded(self, window: int) -> "Plan":
        """Returns the same plan for a network whose windows have more rows."""
        if window < self.window:
            raise ValueError(
                f"the plan's windows have {self.window} states, the network scores at most {window}"
            )
        if window == self.window:
            return self
        weight = torch.nn.functional.pad(self.weight, (0, window - self.window))
        return Plan(self.states, self.start, self.length, weight)

    def to(self, device: torch.device) -> "Plan":
        """Returns the plan on a device."""
        if self.start.device == device:
            return self
        return Plan(
            self.states, self.start.to(device), self.length.to(device), self.weight.to(device)
        )

    def chunks(self, most: int, least: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the starts and masks of the windows, at most `most` windows at a time but no
        fewer than `least`, unless there are fewer in all."""
        count = max(1, min(-(-len(self) // most), len(self) // least))
        yield from zip(self.start.tensor_split(count), self.mask.tensor_split(count), strict=True)


class Composition(Hashable, Protocol):
    """A rule that makes a plan for a trajectory of any length, the same for equal rules."""

    def plan(self, length: int) -> Plan:
        """Returns the plan for a trajectory of `length` states."""
        ...


@dataclass(frozen=True)
class Centre:
    """The published rule: each state takes its estimate from the window around it.

    Arguments:
        order: The half-width k of the windows of 2k + 1 states.
    """

    order: int

    def plan(self, length: int) -> Plan:
        """Returns the plan of L - 2k windows; raises `ValueError` if L < 2k + 1."""
        k, window = self.order, 2 * self.order + 1

        if length < window:
            raise ValueError(
                f"a trajectory must have at least 2k + 1 = {window} states to be composed from "
                f"windows of order k = {k}, got {length}"
            )

        start = torch.arange(length - 2 * k)
        weight = torch.zeros(len(start), window, dtype=torch.int8)
        weight[:, k] = 1
        weight[0, :k] = 1
        weight[-1, k + 1 :] = 1

        return Plan(length, start, torch.full_like(start, window), weight)


@dataclass(frozen=True)
class Junction:
    """The junction rule: windows a stride apart, minus the overlaps of consecutive windows.

    The last window ends with the trajectory, however far it is from the one before. A trajectory
    shorter than a window is scored as one window of its own length.

    Arguments:
        window: The number w of states of a window.
        stride: The number of states from a window's first to the next one's, below w, so that
            windows overlap by w - stride states.
    """

    window: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.window:
            raise ValueError(
                f"stride must be at least 1 and less than the window's {self.window} states, "
                f"got {self.stride}"
            )

    def plan(self, length: int) -> Plan:
        """Returns the plan of about 2 (L - w) / stride windows."""
        if length < 1:
            raise ValueError(f"a trajectory must have at least 1 state, got {length}")

        window = min(self.window, length)
        first = torch.arange(0, length - window, self.stride)
        first = torch.cat((first, torch.tensor([length - window])))
        overlap = first[:-1] + window - first[1:]

        start = torch.cat((first, first[1:]))
        states = torch.cat((torch.full_like(first, window), overlap))
        sign = torch.cat((torch.ones_like(first), -torch.ones_like(overlap)))

        start, rank = torch.sort(start, stable=True)
        states, sign = states[rank], sign[rank]
        weight = sign[:, None] * (torch.arange(self.window) < states[:, None])

        return Plan(length, start, states, weight.to(torch.int8))
