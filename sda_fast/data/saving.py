"""Data sets of a user's own."""

__all__ = ["save_trajectories"]

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..systems import CATALOGUE
from .storage import DIMS, FORMAT, add_trajectories, check_room, import_h5py, moments, reason


def save_trajectories(
    path: str | os.PathLike[str],
    x: Any,
    *,
    system: str,
    dt: float,
    units: str,
    space: Sequence[str] = ("x", "y", "z"),
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Path:
    """Writes trajectories as a data set, as a whole or not at all.

    :class:`Trajectories` reads it, and `python -m sda_fast train FILE` learns from it, as from one
    that `python -m sda_fast simulate` made: vectors by a residual MLP, fields by a U-Net.

    Arguments:
        path: The HDF5 file to write.
        x: The trajectories, with shape (n, L, C, *space), in physical units: a tensor, an array, or
            what is indexed like one (of HDF5, Zarr or netCDF), read one trajectory at a time. It is
            kept in float32. Neighbours in time are `dt` apart, and none is missing or masked.
        system: What they are of: any name but those of this package's systems.
        dt: The time between two states.
        units: The units of states and times, in words.
        space: The names of the dimensions of space, of which as many are taken as there are.
        mean: The mean of each channel, by which states are standardised. Measured by default.
        std: The standard deviation of each channel, likewise.

    Returns:
        The file.

    Raises:
        ValueError: The trajectories are not finite or real, some of them masked, or of another
            shape, or an argument is out of its range.
        OSError: The file could not be written. What was there before is kept.
        ImportError: h5py is missing.
    """
    h5py, path = import_h5py(), Path(path)
    shape = tuple(map(int, x.shape))
    _check(shape, system, dt, space)
    given = {"mean": mean, "std": std}
    channels = {name: _channels(name, v, shape[2]) for name, v in given.items() if v is not None}
    check_room(path, shape)

    from .. import __version__

    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with h5py.File(new, "w") as file:
            array = add_trajectories(file, shape, ("channel", *space[: len(shape) - 3]), blocks=1)
            for i in range(shape[0]):
                array[i] = _states(x[i], i, shape[1:])

            measured = moments(array, (range(i, i + 1) for i in range(shape[0])))
            file.attrs.update(dict(zip(("mean", "std"), measured, strict=True)) | channels)
            file.attrs.update({"format": FORMAT, "version": __version__, "system": system})
            file.attrs.update({"dt": float(dt), "units": units})
            file["blocks"][:] = 1
        os.replace(new, path)
    except OSError as error:
        kept = ": what was there before is kept" if path.exists() else ""
        raise OSError(f"{path} could not be written ({reason(error)}){kept}") from error
    finally:
        new.unlink(missing_ok=True)

    return path


def _check(shape: tuple[int, ...], system: str, dt: float, space: Sequence[str]) -> None:
    """Checks what is not in the trajectories themselves."""
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(f"x must have shape (n, L, C, *space), none of them 0, got {shape}")
    if not system or system in CATALOGUE:
        raise ValueError(
            f"system must be a name of its own, not one of {', '.join(CATALOGUE)}, whose data sets "
            f"are simulated, got {system!r}"
        )
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt must be positive, got {dt}")
    names = (*DIMS, "channel", *space)
    if len(space) < len(shape) - 3 or len(set(names)) < len(names):
        raise ValueError(
            f"space must name the {len(shape) - 3} dimensions of space, each by another name, got "
            f"{tuple(space)}"
        )


def _channels(name: str, value: Sequence[float] | Tensor, count: int) -> np.ndarray:
    """Checks a number of each channel."""
    numbers = np.asarray(value, np.float32)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be {count} finite numbers, one a channel, got {value}")
    if name == "std" and not (numbers > 0).all():
        raise ValueError(f"std must be positive, got {value}")
    return numbers


def _states(x: Any, i: int, shape: tuple[int, ...]) -> np.ndarray:
    """Checks trajectory i."""
    if x.is_complex() if isinstance(x, Tensor) else np.iscomplexobj(x):
        raise ValueError(f"x must be real, but trajectory {i} is {x.dtype}")
    if np.ma.is_masked(x):
        first = tuple(np.argwhere(np.ma.getmaskarray(x))[0].tolist())
        raise ValueError(f"x must be finite, but is masked at {(i, *first)}: none may be missing")
    if isinstance(x, Tensor):
        x = x.detach().to("cpu", torch.float32)
    states = np.asarray(x, np.float32)
    if states.shape != shape:
        raise ValueError(f"trajectory {i} of x must have shape {shape}, got {states.shape}")
    if not np.isfinite(states).all():
        first = tuple(np.argwhere(~np.isfinite(states))[0].tolist())
        raise ValueError(f"x must be finite, but is {states[first]} at {(i, *first)}")
    return states
