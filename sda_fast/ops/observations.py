"""Observing states, with the adjoints, and the residual of what was observed."""

__all__ = [
    "residual",
    "subsample",
    "subsample_adjoint",
]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._dispatch import call, is_native, register


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
        return call(torch.ops.sda_fast.subsample.default, x, start, step, size)
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
        return call(torch.ops.sda_fast.subsample_adjoint.default, y, start, step, shape)
    return reference.subsample_adjoint(y, start, step, shape)


def residual(y: Tensor, prediction: Tensor, std: Tensor, gamma: Tensor, ratio: float) -> Tensor:
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
        ratio: The ratio :math:`\sigma(t) / \mu(t)`.

    Returns:
        The residual, with the shape and dtype of `prediction`. The arithmetic of half types is
        float32, to which `y`, `std` and `gamma` are converted.

    Raises:
        RuntimeError: If a shape or dtype does not fit.
    """
    constants = (y, std, gamma)
    if torch.is_grad_enabled() and any(t.requires_grad for t in constants):
        return reference.residual(y, prediction, std, gamma, ratio)
    if is_native(prediction, *constants):
        wide = torch.float64 if prediction.dtype == torch.float64 else torch.float32
        y, std, gamma = (t.to(wide) for t in constants)
        return call(torch.ops.sda_fast.residual.default, y, prediction, std, gamma, ratio)
    return reference.residual(y, prediction, std, gamma, ratio)


def _fake_trailing(x: Tensor, start: list[int], _: list[int], sizes: list[int]) -> Tensor:
    return x.new_empty(*x.shape[: x.ndim - len(start)], *sizes)


def _fake_residual(y: Tensor, prediction: Tensor, *_: Any) -> Tensor:
    return prediction.new_empty(prediction.shape)


def _setup_subsample(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.start, ctx.step, _ = inputs
    ctx.trailing = x.shape[x.ndim - len(ctx.start) :]


def _backward_subsample(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    adjoint = torch.ops.sda_fast.subsample_adjoint.default
    return adjoint(grad, ctx.start, ctx.step, list(ctx.trailing)), None, None, None


def _backward_subsample_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    subsample = torch.ops.sda_fast.subsample.default
    return subsample(grad, ctx.start, ctx.step, list(ctx.trailing)), None, None, None


def _setup_residual(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, _, std, gamma, ctx.ratio = inputs
    ctx.save_for_backward(y, std, gamma)


def _backward_residual(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, std, gamma = ctx.saved_tensors
    zero = torch.where(y.isnan(), y, 0.0)  # linear: its derivative is the residual of a zero
    residual = torch.ops.sda_fast.residual.default
    return None, residual(zero, grad, std, gamma, ctx.ratio), None, None, None


register("subsample", _fake_trailing, _setup_subsample, _backward_subsample)
register("subsample_adjoint", _fake_trailing, _setup_subsample, _backward_subsample_adjoint)
register("residual", _fake_residual, _setup_residual, _backward_residual)
