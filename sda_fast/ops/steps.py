"""The predictor's step."""

__all__ = ["predictor", "predictor_"]

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._dispatch import call, fake_in_place, is_native, register


def predictor(x: Tensor, eps: Tensor, r: float, b: float) -> Tensor:
    r"""Takes a step of the exponential integrator (Rozet & Louppe 2023, section 3.3).

    .. math:: x(t') = r \, x(t) + b \, \epsilon(x(t), t)

    Arguments:
        x: The state :math:`x(t)`, with any shape, float32, float64, bfloat16 or float16; the
            arithmetic of the half types is float32, rounded once.
        eps: The noise estimate :math:`\epsilon(x(t), t)`, of the same shape and dtype.
        r: The ratio :math:`\mu(t') / \mu(t)`.
        b: The difference :math:`\sigma(t') - r \sigma(t)`.

    Returns:
        The state :math:`x(t')`, of the same shape, and in the same order in memory where `x` is
        without gaps.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ.
    """
    if is_native(x, eps):
        return call(torch.ops.sda_fast.predictor.default, x, eps, r, b)
    return reference.predictor(x, eps, r, b)


def predictor_(x: Tensor, eps: Tensor, r: float, b: float) -> None:
    """Takes the step of :func:`predictor` in place, on an `x` of any strides."""
    if is_native(x, eps, in_place=True):
        torch.ops.sda_fast.predictor_.default(x, eps, r, b)
    else:
        reference.predictor_(x, eps, r, b)


def _fake_predictor(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_predictor(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.r, ctx.b = inputs


def _backward_predictor(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return ctx.r * grad, ctx.b * grad, None, None


register("predictor", _fake_predictor, _setup_predictor, _backward_predictor)
register("predictor_", fake_in_place)
