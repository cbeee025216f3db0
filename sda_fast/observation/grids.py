"""Observing regular parts of a state: every so many places, and means over blocks."""

__all__ = ["BlockMean", "Subsample"]

from collections.abc import Sequence

from torch import Size, Tensor

from .. import ops
from .operator import ObservationOperator

MOST = 8  # dimensions that an operator takes


class Subsample(ObservationOperator):
    """Observes every so many states, components or points of a grid.

    Arguments:
        event: The shape of a state, for instance (L, C, H, W), of at most 8 dimensions.
        slices: The slices of the leading dimensions of a state, time first; the others are
            observed whole.

    Raises:
        TypeError: A slice is none.
        ValueError: There are more slices than dimensions, or of these none or more than 8; a slice
            has a step below 1 or is empty.

    Example:
        >>> A = Subsample((65, 3), slice(None, None, 8), slice(0, 1))
        >>> A(torch.randn(4, 65, 3)).shape
        torch.Size([4, 9, 1])
    """

    def __init__(self, event: Sequence[int], *slices: slice):
        if len(slices) > len(event):
            raise ValueError(
                f"slices must be at most {len(event)}, one a dimension of {tuple(event)}, but are "
                f"{len(slices)}"
            )

        if not 1 <= len(event) <= MOST:
            raise ValueError(f"event must have 1 to {MOST} dimensions, but is {tuple(event)}")

        starts, steps, sizes = [], [], []
        for d, n in enumerate(event):
            s = slices[d] if d < len(slices) else slice(None)
            if not isinstance(s, slice):
                raise TypeError(
                    f"slices[{d}] must be a slice, but is {s!r}: slice(i, i + 1) is one place, and "
                    "Select observes places that are not evenly spaced"
                )
            if s.step is not None and s.step < 1:
                raise ValueError(f"slices[{d}] must have a step of at least 1, but is {s}")
            places = range(n)[s]
            if len(places) == 0:
                raise ValueError(f"slices[{d}] must hold some of {n} places, but is {s}")
            starts.append(places.start)
            steps.append(places.step)
            sizes.append(len(places))

        super().__init__(event, sizes, linear=True)
        self.places = (starts, steps)

    def _observe(self, x: Tensor) -> Tensor:
        return ops.subsample(x, *self.places, self.shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return ops.subsample_adjoint(y, *self.places, self.event)


class BlockMean(ObservationOperator):
    """Observes means over blocks, as a coarse instrument does.

    Arguments:
        event: The shape of a state.
        block: The size of a block in each of the last dimensions, at most 8.

    Raises:
        ValueError: A block does not divide its dimension, or has no dimensions or more than 8.
    """

    def __init__(self, event: Sequence[int], block: Sequence[int]):
        event, block = Size(event), list(block)
        leading = len(event) - len(block)

        if not 1 <= len(block) <= MOST:
            raise ValueError(f"block must have 1 to {MOST} sizes, but is {tuple(block)}")
        if leading < 0 or any(k < 1 or n % k for n, k in zip(event[leading:], block, strict=True)):
            raise ValueError(
                f"block must divide the last dimensions of {tuple(event)}, but is {tuple(block)}"
            )

        coarse = (n // k for n, k in zip(event[leading:], block, strict=True))
        super().__init__(event, (*event[:leading], *coarse), linear=True)
        self.block = block

    def _observe(self, x: Tensor) -> Tensor:
        return ops.block_mean(x, self.block)

    def _adjoint(self, y: Tensor) -> Tensor:
        return ops.block_mean_adjoint(y, self.block)
