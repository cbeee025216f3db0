"""Solvers in jax: how they are imported, and how they are given states one at a time."""

__all__ = ["Solver", "import_solver", "random_keys"]

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator

NEWEST = (0, 6)  # the first jax that solvers do not run with


class Solver(NamedTuple):
    """Compiled functions of one state (2, N, N): from a random key to it, and from it to the
    next."""

    prior: Callable
    transition: Callable


def import_solver(system: str, module: str, package: str, extra: str) -> tuple[Any, Any]:
    """Imports jax and a module of a solver.

    Arguments:
        system: The class that needs it.
        module: The module.
        package: The package that it is of.
        extra: The extra of this package that asks for it.

    Raises:
        ImportError: They are missing, or jax is too new for the solver.
    """
    needs = f"{system} needs {package} and jax < 0.6: pip install 'sda-fast[{extra}]'"
    try:
        jax = importlib.import_module("jax")
    except ImportError as error:
        raise ImportError(f"{needs} ({error})") from error

    if jax.__version_info__ >= NEWEST:
        raise ImportError(f"{needs} (jax is {jax.__version__})")

    try:
        return jax, importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{needs} ({error})") from error


def random_keys(shape: Sequence[int], generator: Generator | None) -> np.ndarray:
    """Draws a key of two 32-bit words for each state, with shape (prod(shape), 2)."""
    keys = torch.randint(2**32, (torch.Size(shape).numel(), 2), generator=generator)
    return keys.numpy().astype(np.uint32)
