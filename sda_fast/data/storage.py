r"""Data sets on disk: one HDF5 file with all trajectories, and what they are of, in it.

The dataset `trajectories` has the dimensions (trajectory, time, channel, ...), in float32 and
physical units, chunked along time; the file's attributes are those of :data:`ATTRIBUTES` and, where
it was simulated by this package and can be again, of :data:`SIMULATION`.

While a simulation is written its file bears the suffix ".part" and grows block by block. All of
its structure is laid down before the first block, so that a block is nothing but numbers written in
place, followed by its mark in the dataset `blocks`: a process that dies at any moment leaves a
sound file, without at most the block that it was writing.
"""

__all__ = [
    "ATTRIBUTES",
    "FORMAT",
    "SIMULATION",
    "PartFile",
    "add_trajectories",
    "check_room",
    "import_h5py",
    "moments",
    "opened",
    "read_header",
    "reason",
]

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..systems import CATALOGUE
from .recipe import Recipe

FORMAT = "sda_fast trajectories 1"

#: What a file says of itself.
ATTRIBUTES = {
    "format": "the version of this format",
    "version": "the version of sda_fast that wrote it",
    "system": "the name of the system",
    "dt": "the time between two states",
    "units": "the units of states and times",
    "mean": "the mean of each channel, by which a network's input is standardised",
    "std": "the standard deviation of each channel",
}

#: What it says besides, of a system of this package.
SIMULATION = {
    "parameters": "the system's parameters, as JSON",
    "seed": "the seed of the simulation",
    "burn_in": "the transitions before the first state",
    "block": "the trajectories that were simulated together",
    "coarsen": "the factor by which fields were coarsened",
}

DIMS = ("trajectory", "time")  # before those of a state
CHUNK = 2**16  # bytes: what a short window of small states reads at once


def import_h5py() -> Any:
    """Imports h5py, or says which extra it is of."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"data sets on disk need h5py: pip install 'sda-fast[data]' ({error})"
        ) from error
    return h5py


def reason(error: OSError) -> str:
    """Says in one line why HDF5 failed."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


@contextmanager
def opened(path: Path, mode: str) -> Iterator[Any]:
    """Opens a file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not a whole HDF5 file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no data set {str(path)!r}")
    try:
        # without a cache what is written is written, or fails, at once
        file = import_h5py().File(path, mode, **({"rdcc_nbytes": 0} if mode == "r+" else {}))
    except BlockingIOError as error:
        raise ValueError(f"{path} is being written by another process") from error
    except OSError as error:
        raise ValueError(f"{path} is not a whole HDF5 file: {reason(error)}") from error
    with file:
        yield file


def read_header(path: Path, file: Any) -> dict[str, Any]:
    """Reads and checks a file's attributes and dimensions."""
    kind = file.attrs.get("format")
    if kind != FORMAT:
        raise ValueError(
            f"{path} is not a data set: its format is {kind!r}, expected {FORMAT!r} (data of your "
            "own become one by sda_fast.data.save_trajectories)"
        )
    for name in ATTRIBUTES:
        if name not in file.attrs:
            raise ValueError(f"{path} has no attribute {name!r}")
    for name in ("trajectories", "blocks"):
        if name not in file:
            raise ValueError(f"{path} has no dataset {name!r}")

    attributes: dict[str, Any] = {name: file.attrs[name] for name in ATTRIBUTES}
    array, system = file["trajectories"], attributes["system"]
    dims = tuple(dim.label for dim in array.dims)

    simulated = system in CATALOGUE
    if not simulated and "parameters" in file.attrs:
        raise ValueError(f"{path} is of an unknown system, {system!r}")
    expected = (*DIMS, *(CATALOGUE[system].dims if simulated else ("channel", *dims[3:])))
    if dims != expected or min(array.shape) < 1:
        raise ValueError(
            f"trajectories of {path} must have dimensions {expected}, got {dims} of shape "
            f"{array.shape}"
        )
    if array.dtype != np.float32:
        raise ValueError(f"trajectories of {path} must be float32, got {array.dtype}")

    recipe = _read_recipe(path, file, system) if simulated else None
    blocks = file["blocks"][:]
    count = 1 if recipe is None else recipe.blocks
    if blocks.shape != (count,):
        raise ValueError(f"blocks of {path} must have shape {(count,)}, got {blocks.shape}")

    return {
        **attributes,
        "recipe": recipe,
        "dims": dims,
        "shape": array.shape,
        "done": blocks > 0,
    }


def _read_recipe(path: Path, file: Any, system: str) -> Recipe:
    """Reads how a system of this package was simulated."""
    for name in SIMULATION:
        if name not in file.attrs:
            raise ValueError(f"{path} has no attribute {name!r}")
    try:
        parameters = json.loads(file.attrs["parameters"])
    except ValueError as error:
        raise ValueError(f"parameters of {path} are not JSON: {error}") from error

    trajectories, length = file["trajectories"].shape[:2]
    options = {name: int(file.attrs[name]) for name in SIMULATION if name != "parameters"}
    return Recipe(system, parameters, trajectories=trajectories, length=length, **options)


def check_room(path: Path, shape: Sequence[int]) -> None:
    """Checks that trajectories of a shape fit on the disk.

    Raises:
        OSError: They do not.
    """
    size = 4 * math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(f"{path} needs {size / 1e6:.0f} MB, but its disk has {free / 1e6:.0f} free")


def add_trajectories(
    file: Any, shape: Sequence[int], dims: Sequence[str], blocks: int, layout: Any = None
) -> Any:
    """Adds the datasets of trajectories (n, L, *state), and of their blocks, none of them done."""
    states = CHUNK // (4 * math.prod(shape[2:]))
    chunks = (1, min(max(states, 1), shape[1]), *shape[2:])
    array = file.create_dataset("trajectories", shape, np.float32, chunks=chunks, dcpl=layout)
    for dim, name in zip(array.dims, (*DIMS, *dims), strict=True):
        dim.label = name
    file.create_dataset("blocks", data=np.zeros(blocks, np.uint8))
    return array


class PartFile:
    """A data set that is being written, as a context.

    Arguments:
        path: The file to write, without the suffix.
        recipe: What it is to hold.

    Raises:
        ValueError: There is a part file already, of another recipe or damaged.
        OSError: The disk has no room.
    """

    def __init__(self, path: Path, recipe: Recipe):
        self.path, self.recipe = path, recipe
        self.part = path.with_name(path.name + ".part")

        if not self.part.exists():
            self._create()
        with opened(self.part, "r") as file:
            header = read_header(self.part, file)
        if differences := header["recipe"].differences(recipe):
            raise ValueError(f"{self.part} is of another command: {'; '.join(differences)}")
        self.done: np.ndarray = header["done"]

    def _create(self) -> None:
        """Lays down the structure of the file."""
        h5py, recipe = import_h5py(), self.recipe
        check_room(self.path, recipe.shape)

        # all space is allotted now and nothing is written to it
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)

        from .. import __version__

        entry = CATALOGUE[recipe.system]
        channels = np.full(recipe.shape[2], np.nan, np.float32)
        attributes = {
            "format": FORMAT,
            "version": __version__,
            "system": recipe.system,
            "parameters": json.dumps(recipe.parameters),
            **{name: getattr(recipe, name) for name in ("seed", "burn_in", "block", "coarsen")},
            "dt": recipe.parameters["dt"],
            "units": entry.units,
            "mean": channels,
            "std": channels,
        }

        new = self.part.with_name(f".{self.part.name}.{os.getpid()}.new")
        try:
            with h5py.File(new, "w") as file:
                add_trajectories(file, recipe.shape, entry.dims, recipe.blocks, layout)
                for name, value in attributes.items():
                    file.attrs[name] = value
            os.replace(new, self.part)
        finally:
            new.unlink(missing_ok=True)

    def __enter__(self) -> "PartFile":
        self._context = opened(self.part, "r+")
        self._file = self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, trace)

    @property
    def pending(self) -> list[int]:
        """The blocks that are not written yet."""
        return [i for i, done in enumerate(self.done) if not done]

    def write(self, index: int, states: np.ndarray) -> None:
        """Writes a block (b, L, *state).

        Raises:
            ValueError: Its shape is another, or it is not finite.
            OSError: It could not be written. The blocks before are kept.
        """
        rows = self.recipe.rows(index)
        expected = (len(rows), *self.recipe.shape[1:])
        if states.shape != expected:
            raise ValueError(f"block {index} must have shape {expected}, got {states.shape}")
        if not np.isfinite(states).all():
            raise ValueError(f"block {index} is not finite")

        try:
            self._file["trajectories"][rows.start : rows.stop] = states
            self._file.flush()  # a mark is never there before its block
            self._file["blocks"][index] = 1
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"block {index} could not be written to {self.part} ({reason(error)}): the "
                f"{int(self.done.sum())} before it are kept, and the same command goes on from them"
            ) from error
        self.done[index] = True

    def finish(self) -> None:
        """Adds the means and standard deviations, and takes the suffix off."""
        mean, std = _standardisation(self.recipe, self._file["trajectories"])
        self._file.attrs.modify("mean", mean)
        self._file.attrs.modify("std", std)
        self._file.close()
        os.replace(self.part, self.path)


def _standardisation(recipe: Recipe, array: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each channel: the system's own, if it has
    them, or those of the data."""
    own = CATALOGUE[recipe.system].system.standardisation(recipe.shape[2:])
    if own is not None:
        mean, std = own
        return mean.numpy(), std.numpy()
    return moments(array, map(recipe.rows, range(recipe.blocks)))


def moments(array: Any, rows: Iterable[range]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each channel of trajectories, read some rows
    at a time, the deviation 1 of what is constant."""
    parts = list(rows)

    def average(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(array.shape[2])
        for part in parts:
            block = np.moveaxis(array[part.start : part.stop].astype(np.float64), 2, -1)
            total += function(block).reshape(-1, array.shape[2]).sum(axis=0)
        return total * array.shape[2] / math.prod(array.shape)

    mean = average(lambda x: x)
    std = np.sqrt(average(lambda x: (x - mean) ** 2))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
