"""Observing by a matrix or a function that is given."""

__all__ = ["Function", "Linear", "Pointwise"]

from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor

from .._arguments import floating
from .operator import ObservationOperator
from .sparse import SparseMap


def _trailing(event: Size, columns: int) -> int:
    """Returns how many leading dimensions a matrix of so many columns leaves as they are."""
    for leading in range(len(event)):
        if event[leading:].numel() == columns:
            return leading
    raise ValueError(
        f"matrix must have as many columns as the last dimensions of {tuple(event)} have elements, "
        f"but has {columns}"
    )


class Linear(ObservationOperator):
    """Observes by a matrix, dense or sparse.

    Arguments:
        event: The shape of a state.
        matrix: The matrix, with shape (M, N), where N is the number of elements of a state; or of
            its last dimensions, and each of what lies in the leading ones is then observed alike.
        shape: The shape of an observation, which has as many elements; (*leading, M) by default.

    Raises:
        ValueError: A shape does not fit.
    """

    weight: Tensor

    def __init__(self, event: Sequence[int], matrix: Tensor, shape: Sequence[int] | None = None):
        event = Size(event)
        if matrix.ndim != 2:
            raise ValueError(f"matrix must have shape (M, N), but has {tuple(matrix.shape)}")
        leading = _trailing(event, matrix.shape[1])
        seen = Size((*event[:leading], matrix.shape[0]))
        shape = seen if shape is None else Size(shape)
        if shape.numel() != seen.numel():
            raise ValueError(f"shape must have {seen.numel()} elements, but is {tuple(shape)}")

        super().__init__(event, shape, linear=True)
        self.leading, self.seen = leading, seen

        self.sparse: SparseMap | None = None
        if matrix.layout == torch.strided:
            self.register_buffer("weight", matrix)
        else:
            entries = matrix.to_sparse_coo().coalesce()
            row, column = entries.indices()
            self.sparse = SparseMap(event, seen, row, column, entries.values(), leading)

    def _observe(self, x: Tensor) -> Tensor:
        if self.sparse is not None:
            return self.sparse._observe(x).reshape(-1, *self.shape)
        x = floating(x)
        weight = self.weight.to(x.dtype)
        return (x.flatten(self.leading + 1) @ weight.mT).reshape(-1, *self.shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        y = y.reshape(-1, *self.seen)
        if self.sparse is not None:
            return self.sparse._adjoint(y)
        y = floating(y)
        return (y @ self.weight.to(y.dtype)).reshape(-1, *self.event)


class Pointwise(ObservationOperator):
    """Observes a function of every element, for instance a sensor that saturates.

    Arguments:
        function: The function, elementwise.
        event: The shape of a state, and of an observation.
        derivative: Its derivative, elementwise; by automatic differentiation if there is none.

    Example:
        >>> A = Subsample((65, 3), slice(None, None, 8))
        >>> A = Pointwise(lambda x: x / (1 + x.abs()), A.shape) @ A
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        event: Sequence[int],
        derivative: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(event, event, linear=False)
        self.function = function
        self.derivative = derivative

    @property
    def _observes_again(self) -> bool:
        return self.derivative is None

    def _observe(self, x: Tensor) -> Tensor:
        y = self.function(x.clone())  # which it may change in place
        if y.shape != x.shape:
            raise ValueError(
                f"function must be elementwise, but maps {tuple(x.shape)} to {tuple(y.shape)}"
            )
        return y

    def _vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        if self.derivative is None:
            return super()._vjp(x, cotangent)
        return self.derivative(x) * cotangent


class Function(ObservationOperator):
    """Observes by any differentiable function.

    Arguments:
        A: The function, from states (B, *event) to observations (B, *shape).
        event: The shape of a state.
        shape: The shape of an observation.
        linear: Whether it is linear, which is taken on trust.
    """

    def __init__(
        self,
        A: Callable[[Tensor], Tensor],
        event: Sequence[int],
        shape: Sequence[int],
        linear: bool = False,
    ):
        super().__init__(event, shape, linear)
        self.A = A

    @property
    def _observes_again(self) -> bool:
        return True

    def _observe(self, x: Tensor) -> Tensor:
        y = self.A(x.clone())  # which it may change in place
        if y.shape != (len(x), *self.shape):
            raise ValueError(
                f"A must map {tuple(x.shape)} to {(len(x), *self.shape)}, but gives "
                f"{tuple(y.shape)}"
            )
        return y

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._differentiate(y.new_zeros(len(y), *self.event), y)
