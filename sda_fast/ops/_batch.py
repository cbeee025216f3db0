"""Batches of any shape, for operators whose batch is one dimension."""

__all__ = ["check_alike", "in_place", "join", "split"]

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Size, Tensor


def join(name: str, x: Tensor, batch_dims: int) -> Tensor:
    """Joins the leading dimensions into one, in row-major order: a view where that is possible."""
    if not 0 <= batch_dims <= x.ndim:
        raise ValueError(
            f"batch_dims must be at least 0 and at most the {x.ndim} dimension(s) of {name}, "
            f"but is {batch_dims}"
        )
    return x.reshape(math.prod(x.shape[:batch_dims]), *x.shape[batch_dims:])


def split(x: Tensor, batch: Size) -> Tensor:
    """Splits the first dimension into those of a batch."""
    return x.reshape(*batch, *x.shape[1:])


def in_place(name: str, x: Tensor, batch_dims: int, run: Callable[[Tensor], None]) -> None:
    """Runs what changes joined samples on those of a tensor, copied back where they are no view."""
    samples = join(name, x, batch_dims)
    run(samples)

    outer = [(n, s) for n, s in zip(x.shape, x.stride(), strict=True)][:batch_dims]
    outer = [(n, s) for n, s in outer if n != 1]
    is_view = all(s == m * t for (_, s), (m, t) in pairwise(outer))
    if x.numel() > 0 and not is_view:
        x.copy_(samples.reshape(x.shape))


def check_alike(name: str, t: Tensor, x: Tensor) -> None:
    """Checks what would not be seen of joined samples."""
    if t.shape != x.shape:
        raise RuntimeError(
            f"{name} must have the shape of x, {tuple(x.shape)}, but has {tuple(t.shape)}"
        )
