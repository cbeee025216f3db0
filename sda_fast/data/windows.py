"""Random windows of a data set on disk."""

__all__ = ["Windows"]

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .trajectories import Trajectories


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Random standardised windows, of one length or of several, for a torch `DataLoader`.

    Which window an index means is a function of the seed, the epoch and the index alone: the order
    is random already, needs no shuffling, and is the same when training resumes.

    Arguments:
        data: The data set, or its file.
        lengths: The number of states of a window, or the numbers that are drawn from, uniformly; a
            length may be repeated.
        split: The part of the trajectories, see :meth:`Trajectories.split`.
        fractions: The sizes of the parts.
        size: The number of windows of an epoch, by default as many as lie side by side.
        seed: The seed of the windows.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        data: Trajectories | str | os.PathLike[str],
        lengths: int | Sequence[int],
        *,
        split: str = "train",
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        size: int | None = None,
        seed: int = 0,
    ):
        self.data = data if isinstance(data, Trajectories) else Trajectories(data)
        self.lengths = (lengths,) if isinstance(lengths, int) else tuple(lengths)
        self.rows = self.data.split(split, fractions)
        self.seed = seed

        states = self.data.shape[1]
        if not self.lengths or min(self.lengths) < 1 or max(self.lengths) > states:
            raise ValueError(f"lengths must be between 1 and {states}, got {self.lengths}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")

        #: The number w of states of the longest window.
        self.window = max(self.lengths)
        self.size = len(self.rows) * (states // self.window) if size is None else size
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {size}")

        # shared, so that the processes of a DataLoader see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The number of the epoch, to be set before each."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, value: int) -> None:
        if value < 0:
            raise ValueError(f"epoch must not be negative, got {value}")
        self._epoch.fill_(value)

    def __len__(self) -> int:
        return self.size

    def locate(self, index: int) -> tuple[int, int, int]:
        """Says which window an index means in this epoch: trajectory, first state and length."""
        if not 0 <= index < self.size:
            raise IndexError(f"index must be between 0 and {self.size - 1}, got {index}")

        draw = np.random.default_rng((self.seed, self.epoch, index))
        length = self.lengths[draw.integers(len(self.lengths))]
        row = self.rows[draw.integers(len(self.rows))]
        return row, int(draw.integers(self.data.shape[1] - length + 1)), length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns a window and its length.

        Returns:
            The states, with shape (w, *state), zero beyond the length; and the length, an integer.
        """
        row, start, length = self.locate(index)
        x = torch.zeros(self.window, *self.data.shape[2:])
        x[:length] = self.data.preprocess(self.data[row, start : start + length])
        return x, torch.tensor(length)
