"""The predictor's steps, and what is predicted of the state at their end."""

__all__ = ["denoise", "multistep", "multistep_", "predictor", "predictor_"]

from typing import Any

from torch import Tensor

from .. import reference
from ._dispatch import call, fake_elementwise, fake_in_place, is_native, native, register


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
        return call(native.predictor, x, eps, r, b)
    return reference.predictor(x, eps, r, b)


def predictor_(x: Tensor, eps: Tensor, r: float, b: float) -> None:
    """Takes the step of :func:`predictor` in place, on an `x` of any strides."""
    if is_native(x, eps, in_place=True):
        native.predictor_(x, eps, r, b)
    else:
        reference.predictor_(x, eps, r, b)


def multistep(x: Tensor, eps: list[Tensor], r: float, b: list[float]) -> Tensor:
    r"""Takes a step of an exponential Adams-Bashforth predictor.

    .. math:: x(t') = r \, x(t) + \sum_j b_j \, \epsilon_j

    The sum is taken in order of :math:`j`. With one estimate it is the step of :func:`predictor`.

    References:
        | Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)
        | https://arxiv.org/abs/2204.13902

    Arguments:
        x: The state :math:`x(t)`, with any shape, float32, float64, bfloat16 or float16; the
            arithmetic of the half types is float32, rounded once.
        eps: The last 1 to 4 noise estimates, of the same shape and dtype.
        r: The ratio :math:`\mu(t') / \mu(t)`.
        b: The estimates' weights: :math:`\sigma(t') - r \sigma(t)` times those of
            :func:`sda_fast.schedule.adams_bashforth`.

    Returns:
        The state :math:`x(t')`, of the same shape, and in the same order in memory where `x` is
        without gaps.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ, or there are not as many weights as
            estimates.
    """
    if is_native(x, *eps):
        return call(native.multistep, x, eps, r, b)
    return reference.multistep(x, eps, r, b)


def multistep_(x: Tensor, eps: list[Tensor], r: float, b: list[float]) -> None:
    """Takes the step of :func:`multistep` in place, on an `x` of any strides."""
    if is_native(x, *eps, in_place=True):
        native.multistep_(x, eps, r, b)
    else:
        reference.multistep_(x, eps, r, b)


def denoise(x: Tensor, eps: Tensor, mu: float | Tensor, sigma: float | Tensor) -> Tensor:
    r"""Predicts the state without its noise, by Tweedie's formula.

    .. math:: \hat{x} = (x(t) - \sigma \, \epsilon(x(t), t)) / \mu

    Arguments:
        x: The state :math:`x(t)`, with any shape, float32, float64, bfloat16 or float16; the
            arithmetic of the half types is float32, rounded once.
        eps: The noise estimate :math:`\epsilon(x(t), t)`, of the same shape and dtype.
        mu: The signal level :math:`\mu(t)`, above 0.
        sigma: The noise level :math:`\sigma(t)`. Where a level is a tensor (), as a captured step
            reads it from the device's memory, the reference serves.

    Returns:
        The expectation :math:`\hat{x}` of :math:`x` given :math:`x(t)`, of the same shape, and in
        the same order in memory where `x` is without gaps.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ, or `mu` is not above 0.
    """
    numbers = not isinstance(mu, Tensor) and not isinstance(sigma, Tensor)
    if numbers and is_native(x, eps):
        return call(native.denoise, x, eps, mu, sigma)
    return reference.denoise(x, eps, mu, sigma)


def _setup_predictor(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.r, ctx.b = inputs


def _backward_predictor(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return ctx.r * grad, ctx.b * grad, None, None


def _setup_multistep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.r, ctx.b = inputs


def _backward_multistep(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return ctx.r * grad, [b * grad for b in ctx.b], None, None


def _setup_denoise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.mu, ctx.sigma = inputs


def _backward_denoise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad / ctx.mu, -ctx.sigma / ctx.mu * grad, None, None


register("predictor", fake_elementwise, _setup_predictor, _backward_predictor)
register("predictor_", fake_in_place)
register("multistep", fake_elementwise, _setup_multistep, _backward_multistep)
register("multistep_", fake_in_place)
register("denoise", fake_elementwise, _setup_denoise, _backward_denoise)
