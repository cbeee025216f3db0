"""Observing states, with the adjoints, and the residual of what was observed."""

__all__ = [
    "block_mean",
    "block_mean_adjoint",
    "residual",
    "sparse_map",
    "subsample",
    "subsample_adjoint",
    "transpose",
]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._dispatch import call, is_native, native, need_grad, register


def subsample(x: Tensor, start: Sequence[int], step: Sequence[int], size: Sequence[int]) -> Tensor:
    r"""Takes every step-th element of the trailing dimensions.

    .. math:: y_{b, j} = x_{b, \, \text{start} + \text{step} \cdot j}, \qquad 0 \leq j < \text{size}

    Arguments:
        x: The states, with shape :math:`(*, n_1, \dots, n_d)`, float32, float64, bfloat16 or
            float16.
        start: The first place in each of the last :math:`d` dimensions, at most 8.
        step: The distance between places, at least 1.
        size: The number of places.

    Returns:
        The observations, with shape :math:`(*, \text{size}_1, \dots, \text{size}_d)`.

    Raises:
        RuntimeError: If a place lies beyond the states, or a shape or dtype does not fit.
    """
    start, step, size = list(start), list(step), list(size)
    if is_native(x):
        return call(native.subsample, x, start, step, size)
    return reference.subsample(x, start, step, size)


def subsample_adjoint(
    y: Tensor, start: Sequence[int], step: Sequence[int], shape: Sequence[int]
) -> Tensor:
    r"""Puts observations back to where `subsample` took them from, zero elsewhere: its adjoint.

    Arguments:
        y: The observations, with shape :math:`(*, \text{size}_1, \dots, \text{size}_d)`.
        start: The first place in each of the last :math:`d` dimensions, at most 8.
        step: The distance between places, at least 1.
        shape: The sizes :math:`n_1, \dots, n_d` of a state's last dimensions.

    Returns:
        The states, with shape :math:`(*, n_1, \dots, n_d)`.

    Raises:
        RuntimeError: As for :func:`subsample`.
    """
    start, step, shape = list(start), list(step), list(shape)
    if is_native(y):
        return call(native.subsample_adjoint, y, start, step, shape)
    return reference.subsample_adjoint(y, start, step, shape)


CSR = tuple[Tensor, Tensor, Tensor | None]


def sparse_map(
    x: Tensor,
    row: Tensor,
    column: Tensor,
    value: Tensor | None = None,
    transposed: CSR | None = None,
) -> Tensor:
    r"""Maps states by a sparse matrix, in compressed rows.

    .. math:: y_{b, m} = \sum_{\text{row}_m \leq j < \text{row}_{m + 1}}
        \text{value}_j \, x_{b, \, \text{column}_j}

    The sum is taken in order of :math:`j`. Its adjoint is the same operator with the transposed
    matrix, which :func:`transpose` makes once; so nothing depends on the order of threads. Native,
    it is differentiable with respect to `x`; where `value` asks for a gradient, the reference
    computes it.

    Arguments:
        x: The states, with shape :math:`(B, *)` and :math:`N` elements each, float32, float64,
            bfloat16 or float16.
        row: Where the rows begin and the last one ends, int64 with shape :math:`(M + 1)`.
        column: The places in a flattened state, int64 with shape :math:`(J)`.
        value: The values, with shape :math:`(J)`; 1 if there are none, a selection. They are
            converted to the type of the arithmetic, float32 for half types.
        transposed: The row, column and value of the transposed matrix, for the gradient; made anew
            for each if there are none.

    Returns:
        The observations, with shape :math:`(B, M)`.

    Raises:
        RuntimeError: If a shape or dtype does not fit. On the CPU also if `row` does not ascend
            from 0 to :math:`J` or a column lies beyond the state; on a GPU, where looking would
            mean to wait for it, the sum is then NaN: :class:`sda_fast.observation.SparseMap` looks
            when it is built.
    """
    if need_grad((value,)):
        return reference.sparse_map(x, row, column, value)
    if is_native(x, value):
        value = None if value is None else _widened(value, x)
        row_t, column_t, value_t = transposed or (None, None, None)
        value_t = None if value_t is None else _widened(value_t, x)
        operator = native.sparse_map
        return call(operator, x, row, column, value, row_t, column_t, value_t)
    return reference.sparse_map(x, row, column, value)


def transpose(row: Tensor, column: Tensor, value: Tensor | None, columns: int) -> CSR:
    """Returns the row, column and value of the transpose of a matrix with so many columns."""
    order = column.argsort(stable=True)
    of_row = torch.repeat_interleave(row.diff(), output_size=column.shape[0])
    starts = torch.searchsorted(column[order], torch.arange(columns + 1, device=column.device))
    return starts, of_row[order], None if value is None else value[order]


def block_mean(x: Tensor, block: Sequence[int]) -> Tensor:
    r"""Averages over blocks of the trailing dimensions.

    .. math:: y_{b, j} = \frac{1}{|\text{block}|} \sum_{0 \leq k < \text{block}}
        x_{b, \, \text{block} \cdot j + k}

    Arguments:
        x: The states, with shape :math:`(*, n_1, \dots, n_d)`, float32, float64, bfloat16 or
            float16, whose sums are float32.
        block: The size of a block in each of the last :math:`d` dimensions, at most 8; it divides
            that of the dimension.

    Returns:
        The means, with shape :math:`(*, n_1 / \text{block}_1, \dots, n_d / \text{block}_d)`.

    Raises:
        RuntimeError: If a shape or dtype does not fit.
    """
    block = list(block)
    if is_native(x):
        return call(native.block_mean, x, block)
    return reference.block_mean(x, block)


def block_mean_adjoint(y: Tensor, block: Sequence[int]) -> Tensor:
    """Spreads means over their blocks, divided by the size of a block: the adjoint of `block_mean`.

    Arguments:
        y: The means, with trailing dimensions that have blocks.
        block: The size of a block in each of the trailing dimensions, at most 8.

    Returns:
        The states, larger in each of the trailing dimensions by that factor.

    Raises:
        RuntimeError: If a shape or dtype does not fit.
    """
    block = list(block)
    if is_native(y):
        return call(native.block_mean_adjoint, y, block)
    return reference.block_mean_adjoint(y, block)


def residual(
    y: Tensor, prediction: Tensor, std: Tensor, gamma: Tensor, ratio: float | Tensor
) -> Tensor:
    r"""Returns the residual of a Gaussian likelihood over its variance (Rozet & Louppe 2023,
    algorithm 3), the gradient of its logarithm with respect to the prediction.

    .. math:: r = \frac{y - A(\hat x)}
        {\Sigma_y + \frac{\sigma(t)^2}{\mu(t)^2} \Gamma}

    It is exactly 0 where :math:`y` is NaN, that is where nothing was observed, whatever the
    prediction is there. Native, it is differentiable with respect to the prediction; where another
    argument asks for a gradient, the reference computes it.

    Arguments:
        y: The observation, broadcastable to `prediction`. NaN is not observed.
        prediction: What is predicted of it, :math:`A(\hat x)`, with shape :math:`(B, *)`, float32,
            float64, bfloat16 or float16.
        std: The standard deviation of the observation noise, broadcastable to `y`.
        gamma: The number or the diagonal :math:`\Gamma`, broadcastable to `y`.
        ratio: The ratio :math:`\sigma(t) / \mu(t)`. Where it is a tensor (), as a captured step
            reads it from the device's memory, the reference serves.

    Returns:
        The residual, with the shape and dtype of `prediction`. The arithmetic of half types is
        float32, to which `y`, `std` and `gamma` are converted.

    Raises:
        RuntimeError: If a shape or dtype does not fit.
    """
    if need_grad((y, std, gamma)) or isinstance(ratio, Tensor):
        return reference.residual(y, prediction, std, gamma, ratio)
    if is_native(prediction, y, std, gamma):
        y, std, gamma = (_widened(t, prediction) for t in (y, std, gamma))
        return call(native.residual, y, prediction, std, gamma, ratio)
    return reference.residual(y, prediction, std, gamma, ratio)


def _widened(t: Tensor, x: Tensor) -> Tensor:
    """Converts to the type of the arithmetic with `x`. `Tensor.to` takes a quarter as long as a
    small operator where there is nothing to do."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return t if t.dtype == wide else t.to(wide)


def _fake_trailing(x: Tensor, start: list[int], _: list[int], sizes: list[int]) -> Tensor:
    return x.new_empty(*x.shape[: x.ndim - len(start)], *sizes)


def _fake_residual(y: Tensor, prediction: Tensor, *_: Any) -> Tensor:
    return prediction.new_empty(prediction.shape)


def _setup_subsample(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.start, ctx.step, _ = inputs
    ctx.trailing = x.shape[x.ndim - len(ctx.start) :]


def _backward_subsample(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    adjoint = native.subsample_adjoint
    return adjoint(grad, ctx.start, ctx.step, list(ctx.trailing)), None, None, None


def _backward_subsample_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    subsample = native.subsample
    return subsample(grad, ctx.start, ctx.step, list(ctx.trailing)), None, None, None


def _fake_sparse_map(x: Tensor, row: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], row.shape[0] - 1)


def _fake_block_mean(x: Tensor, block: list[int]) -> Tensor:
    leading = x.ndim - len(block)
    sizes = (n // k for n, k in zip(x.shape[leading:], block, strict=True))
    return x.new_empty(*x.shape[:leading], *sizes)


def _fake_block_mean_adjoint(y: Tensor, block: list[int]) -> Tensor:
    leading = y.ndim - len(block)
    sizes = (n * k for n, k in zip(y.shape[leading:], block, strict=True))
    return y.new_empty(*y.shape[:leading], *sizes)


def _setup_sparse_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *matrices = inputs
    ctx.save_for_backward(*matrices)
    ctx.event = x.shape[1:]


def _backward_sparse_map(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    row, column, value, *transposed = ctx.saved_tensors
    if transposed[0] is None:
        transposed = transpose(row, column, value, ctx.event.numel())
    sparse_map = native.sparse_map
    grad_x = sparse_map(grad, *transposed, row, column, value).reshape(grad.shape[0], *ctx.event)
    return grad_x, *(None,) * 6


def _setup_block_mean(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.block = inputs


def _backward_block_mean(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return native.block_mean_adjoint(grad, ctx.block), None


def _backward_block_mean_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return native.block_mean(grad, ctx.block), None


def _setup_residual(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, _, std, gamma, ctx.ratio = inputs
    ctx.save_for_backward(y, std, gamma)


def _backward_residual(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, std, gamma = ctx.saved_tensors
    zero = torch.where(y.isnan(), y, 0.0)  # linear: its derivative is the residual of a zero
    residual = native.residual
    return None, residual(zero, grad, std, gamma, ctx.ratio), None, None, None


register("subsample", _fake_trailing, _setup_subsample, _backward_subsample)
register("subsample_adjoint", _fake_trailing, _setup_subsample, _backward_subsample_adjoint)
register("sparse_map", _fake_sparse_map, _setup_sparse_map, _backward_sparse_map)
register("block_mean", _fake_block_mean, _setup_block_mean, _backward_block_mean)
register(
    "block_mean_adjoint", _fake_block_mean_adjoint, _setup_block_mean, _backward_block_mean_adjoint
)
register("residual", _fake_residual, _setup_residual, _backward_residual)
