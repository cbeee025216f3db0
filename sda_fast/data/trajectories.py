"""Data sets on disk, read lazily."""

__all__ = ["Trajectories"]

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .recipe import Recipe
from .storage import import_h5py, opened, read_header, reason

# What a digest reads at once, and how often at most.
BLOCK, BLOCKS = 2**22, 256


class Trajectories:
    """A data set on disk, of which only what is asked for is read.

    It can be pickled, and every process that uses it opens the file by itself.

    Arguments:
        path: The file.
        system: The name of the system that it must be of, if not any.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a complete data set, or of another system.
        ImportError: h5py is missing.
    """

    def __init__(self, path: str | os.PathLike[str], *, system: str | None = None):
        self.path = Path(path)
        with opened(self.path, "r") as file:
            header = read_header(self.path, file)

        self.system: str = header["system"]
        #: How they were simulated, or None of a system that is not of this package.
        self.recipe: Recipe | None = header["recipe"]
        self.dims: tuple[str, ...] = header["dims"]
        #: The shape of the data set, (n, L, *state).
        self.shape: tuple[int, ...] = header["shape"]
        self.dt, self.units, self.version = header["dt"], header["units"], header["version"]
        done = header["done"]

        if system is not None and self.system != system:
            raise ValueError(f"{path} must be of {system!r}, but is of {self.system!r}")
        if not done.all():
            raise ValueError(f"{path} is not complete: {done.sum()} of {len(done)} blocks")

        state = self.shape[2:]
        self.mean, self.std = (torch.from_numpy(header[name]) for name in ("mean", "std"))
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value.shape != state[:1] or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} of {path} must be finite, of shape {state[:1]}: {value}")

        # the process that opened the file, which stays open, and the states
        self._opened: tuple[int, Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Tensor:
        """Reads states in physical units, by what can index an HDF5 dataset.

        Raises:
            ValueError: They are not finite, or cannot be read.
        """
        kept = self._opened  # read once: another thread may open it too
        if kept is None or kept[0] != os.getpid():
            file = import_h5py().File(self.path, "r")
            kept = self._opened = os.getpid(), file, file["trajectories"]
        try:
            x = kept[2][key]
        except OSError as error:
            raise ValueError(
                f"trajectories {key} of {self.path} cannot be read: {reason(error)}"
            ) from error
        if not np.isfinite(x).all():
            first = tuple(np.argwhere(~np.isfinite(x))[0].tolist())
            raise ValueError(
                f"trajectories {key} of {self.path} are not finite, first at {first} among them"
            )

        return torch.from_numpy(np.asarray(x))

    def digest(self) -> str:
        """Returns a digest of the states, by which data sets are told apart.

        They are read a block of about 4 MB at a time. Of up to 256 blocks it is of all states, and
        of a larger set of 256 blocks, evenly spread from the first to the last.

        Raises:
            ValueError: The states are not finite, or cannot be read.
        """
        blocks = list(self._blocks())
        count = min(len(blocks), BLOCKS)
        result = hashlib.blake2b(str(self.shape).encode(), digest_size=8)
        for k in range(count):
            block = blocks[k * (len(blocks) - 1) // max(count - 1, 1)]
            result.update(self[block].numpy().tobytes())
        return result.hexdigest()

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yields the places of all states: of some trajectories, or of a part of a long one."""
        n, length = self.shape[:2]
        states = max(BLOCK // (4 * math.prod(self.shape[2:])), 1)
        rows = max(states // length, 1)
        for i in range(0, n, rows):
            for j in range(0, length, states):
                yield slice(i, i + rows), slice(j, j + states)

    def _channels(self, value: Tensor, x: Tensor) -> Tensor:
        dtype = torch.result_type(x, 1.0)  # of integers, a floating type
        return value.to(x.device, dtype).reshape(-1, *(1 for _ in self.shape[3:]))

    def preprocess(self, x: Tensor) -> Tensor:
        """Standardises physical states (*, *state)."""
        return (x - self._channels(self.mean, x)) / self._channels(self.std, x)

    def postprocess(self, x: Tensor) -> Tensor:
        """Maps standardised states (*, *state) to physical ones."""
        return self._channels(self.mean, x) + self._channels(self.std, x) * x

    def split(self, name: str, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> range:
        """Returns the trajectories that train, validate or test: always the same ones.

        Arguments:
            name: "train", "valid" or "test", which follow each other in the file; or "all".
            fractions: The parts of the trajectories, of sum 1.

        Raises:
            ValueError: There is no such split, or it is empty.
        """
        names = ("train", "valid", "test")
        if name == "all":
            return range(len(self))
        if name not in names:
            raise ValueError(f"split must be one of {', '.join(names)} or all, got {name!r}")
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(
                f"fractions must be three numbers, none negative, of sum 1, got {fractions}"
            )

        i, n = names.index(name), len(self)
        ends = [round(n * sum(fractions[:k])) for k in range(4)]
        # of a few, one that would train validates if others test; larger sets stay as they were
        if n < 10 and fractions[1] > 0 and 1 < ends[1] == ends[2] < n:
            ends[1] -= 1
        start, stop = ends[i], ends[i + 1]
        if start == stop:
            raise ValueError(
                f"the split {name!r} of {len(self)} trajectories by {fractions} is empty"
            )
        return range(start, stop)
