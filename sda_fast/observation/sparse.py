"""Observing by a sparse matrix."""

__all__ = ["SparseMap"]

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from .. import ops
from .._arguments import floating
from .._kept import keeping
from ..ops.observations import CSR
from .operator import ObservationOperator


class SparseMap(ObservationOperator):
    """Observes by a sparse matrix, which acts on the last dimensions of a state.

    Arguments:
        event: The shape of a state, (*leading, *last).
        shape: The shape of an observation, (*leading, *seen), which keeps the leading dimensions.
        row: Which number of those seen each entry of the matrix is for, with shape (J).
        column: Which element of the flattened last dimensions it reads, with shape (J).
        value: The entries, with shape (J), or None if all are 1.
        leading: The number of leading dimensions.

    Raises:
        ValueError: An entry is beyond the matrix, the entries are not equally many, or the leading
            dimensions are not kept.
    """

    row: Tensor
    column: Tensor
    value: Tensor | None
    row_t: Tensor
    column_t: Tensor
    value_t: Tensor | None

    def __init__(
        self,
        event: Sequence[int],
        shape: Sequence[int],
        row: Tensor,
        column: Tensor,
        value: Tensor | None = None,
        leading: int = 0,
    ):
        super().__init__(event, shape, linear=True)

        if self.event[:leading] != self.shape[:leading]:
            raise ValueError(
                f"shape must begin with the {leading} leading dimensions of {tuple(event)}, but is "
                f"{tuple(shape)}"
            )
        if row.ndim != 1:
            raise ValueError(f"row must have shape (J,), but has {tuple(row.shape)}")
        for name, entries in (("column", column), ("value", value)):
            if entries is not None and entries.shape != row.shape:
                raise ValueError(
                    f"{name} must have as many entries as row, shape {tuple(row.shape)}, but has "
                    f"{tuple(entries.shape)}"
                )

        rows, columns = self.shape[leading:].numel(), self.event[leading:].numel()
        for name, index, size in (("row", row, rows), ("column", column, columns)):
            if index.numel() > 0 and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise ValueError(
                    f"{name} must be at least 0 and below {size}, but is from {int(index.min())} "
                    f"to {int(index.max())}"
                )

        order = row.argsort(stable=True)
        row, column = row[order], column[order]
        value = None if value is None else value[order]
        starts = torch.searchsorted(row, torch.arange(rows + 1, device=row.device))
        transposed = ops.transpose(starts, column, value, columns)

        names = ("row", "column", "value", "row_t", "column_t", "value_t")
        for name, x in zip(names, (starts, column, value, *transposed), strict=True):
            self.register_buffer(name, x)
        self.leading = leading
        self._of = self._versions()  # what the transpose is of

    def _versions(self) -> list[tuple[Tensor, int]]:
        """Returns the entries, each with torch's count of its changes in place."""
        entries = (x for x in (self.row, self.column, self.value) if x is not None)
        return [(x, 0 if x.is_inference() else x._version) for x in entries]

    def _transposed(self) -> CSR:
        """Returns the transposed matrix, made anew if an entry was changed in place."""
        if not torch.compiler.is_compiling():
            now, of = self._versions(), self._of
            same = (x is y and n == m for (x, n), (y, m) in zip(now, of, strict=False))
            if len(now) != len(of) or not all(same):
                columns = self.event[self.leading :].numel()
                with keeping():
                    matrix = ops.transpose(self.row, self.column, self.value, columns)
                self.row_t, self.column_t, self.value_t = matrix
                self._of = now
        return self.row_t, self.column_t, self.value_t

    def _map(self, x: Tensor, shape: Size, *, adjoint: bool) -> Tensor:
        x = x if self.value is None else floating(x)
        matrix = (self.row, self.column, self.value)
        transposed = self._transposed()
        if adjoint:
            matrix, transposed = transposed, matrix
        y = ops.sparse_map(x.flatten(0, self.leading).flatten(1), *matrix, transposed)
        return y.reshape(len(x), *shape)

    def _observe(self, x: Tensor) -> Tensor:
        return self._map(x, self.shape, adjoint=False)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._map(y, self.event, adjoint=True)
