"""What is given as arguments: states, an observation, and what belongs to its elements."""

__all__ = ["as_observation", "as_tensor", "checked", "fits", "floating", "parameter"]

from typing import Any

import numpy as np
import torch
from torch import Size, Tensor


def _first(bad: Tensor) -> tuple[int, ...]:
    """Returns the index of the first true element."""
    return tuple(bad.nonzero()[0].tolist())


def fits(shape: Size, other: Size) -> bool:
    """Says whether a shape broadcasts to another one."""
    pairs = zip(reversed(shape), reversed(other), strict=False)
    return len(shape) <= len(other) and all(n in (1, m) for n, m in pairs)


def as_tensor(name: str, x: Any, **options: Any) -> Tensor:
    """Returns what is given as torch.as_tensor does, NumPy's arrays in any order of their elements
    and bytes.

    Raises:
        ValueError: An element is masked: what lies there is no number that was meant.
    """
    if np.ma.is_masked(x):
        first = tuple(np.argwhere(np.ma.getmaskarray(x))[0].tolist())
        raise ValueError(f"{name} must have no masked elements, but is masked at index {first}")
    if isinstance(x, np.ndarray):
        x = np.asarray(x, x.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(x, **options)


def floating(x: Tensor) -> Tensor:
    """Returns states as they are, or whole numbers in torch's default type, since results and
    weights rounded to theirs would be lost."""
    whole = not (x.is_floating_point() or x.is_complex())
    return x.to(torch.get_default_dtype()) if whole else x


def as_observation(y: Any) -> Tensor:
    """Returns an observation as a tensor, NaN where NumPy masks it."""
    if np.ma.is_masked(y):
        whole = y.dtype.kind not in "fc"
        y = y.astype(str(torch.get_default_dtype())[6:]) if whole else y
        y = y.filled(np.nan)
    return as_tensor("y", y)


def checked(y: Tensor) -> Tensor:
    """Checks an observation."""
    try:
        y = as_observation(y)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"y must be a tensor or numbers, got {type(y).__name__}") from error
    if y.is_complex():
        raise TypeError(f"y must be real, got {y.dtype}")

    infinite = torch.isinf(y)

    if bool(infinite.any()):
        raise ValueError(
            f"y must be finite, or NaN where it was not observed, got {int(infinite.sum())} "
            f"infinite of {y.numel()} elements, the first at index {_first(infinite)}"
        )

    return y


def parameter(name: str, value: float | Tensor, y: Tensor, sign: str = "positive") -> Tensor:
    """Checks what is one number or one for each element of y, "positive" or "zero or positive". A
    number is as exact as y."""
    number = isinstance(value, float | int)
    wide = torch.promote_types(y.dtype, torch.get_default_dtype()) if number else None
    tensor = as_tensor(name, value, dtype=wide)
    if not fits(tensor.shape, y.shape):
        raise ValueError(
            f"{name} must be a number or broadcast to y, with shape {tuple(y.shape)}, "
            f"got shape {tuple(tensor.shape)}"
        )
    good = tensor > 0 if sign == "positive" else tensor >= 0
    if not bool(good.all()):
        bad = _first(~good)
        where = f" at index {bad}" if tensor.ndim else ""
        raise ValueError(f"{name} must be {sign}, got {tensor[bad].item()}{where}")
    return tensor
