"""What a U-Net does to fields between its convolutions, written where the next of them reads it."""

__all__ = ["activation_pad", "activation_pad_vjp", "fold", "norm_pad", "norm_pad_vjp"]

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from ._dispatch import call, is_native, native, register


def norm_pad(
    x: Tensor,
    shift: Tensor | None = None,
    padding: Sequence[int] = (0, 0),
    upsample: Sequence[int] = (1, 1),
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    r"""Standardises modulated fields over their channels, and pads them circularly.

    .. math:: n = \frac{a - E[a]}{\sqrt{V[a] + \epsilon}}, \quad a = x + \text{shift}

    The variance is the unbiased one. Differentiable with respect to `x` and `shift`, once.

    References:
        | Layer Normalization (Lei Ba et al., 2016)
        | https://arxiv.org/abs/1607.06450

    Arguments:
        x: The fields, with shape :math:`(B, C, H, W)`, float32, float64, bfloat16 or float16, in
            any order in memory.
        shift: The shift of each channel, with shape (1 or B, C), float64 beside a float64 `x` and
            float32 otherwise.
        padding: How many rows and columns to pad with on either side.
        upsample: How many times each row and column is repeated before.
        eps: The numerical stability term :math:`\epsilon`.

    Returns:
        The padded fields, with shape :math:`(B, C, u H + 2 p, v W + 2 q)` and their channels last
        in memory, and :math:`1 / \sqrt{V[a] + \epsilon}`, with shape :math:`(B, H, W)` and the
        dtype of `shift`.

    Raises:
        RuntimeError: If a shape or dtype does not fit, or there are more than 2048 channels.
    """
    if is_native(x, shift):
        arguments = (x, shift, list(padding), list(upsample), eps)
        result: tuple[Tensor, Tensor] = call(native.norm_pad, *arguments)
        return result
    return reference.norm_pad(x, shift, list(padding), list(upsample), eps)


def norm_pad_vjp(
    cotangent: Tensor,
    normed: Tensor,
    scale: Tensor,
    residual: Tensor | None = None,
    padding: Sequence[int] = (0, 0),
    upsample: Sequence[int] = (1, 1),
) -> Tensor:
    r"""Returns the vector-Jacobian product of :func:`norm_pad` before its padding, plus a residual,
    itself padded circularly: so the adjoint of a convolution reads it.

    .. math:: \text{scale} \left( g - E[g] - \frac{n \, \sum g n}{C - 1} \right) + \text{residual}

    Arguments:
        cotangent: The cotangent, with shape :math:`(B, C, u H, v W)`, in any order in memory, as
            are the others; :math:`g` is its sum over the points that one was repeated to.
        normed: The standardised fields :math:`n`, with shape :math:`(B, C, H, W)`.
        scale: What :func:`norm_pad` returned beside them, with shape :math:`(B, H, W)`.
        residual: What is added, with shape :math:`(B, C, H, W)`.
        padding: How many rows and columns to pad with on either side.
        upsample: How many times each row and column was repeated.

    Returns:
        The padded product, with shape :math:`(B, C, H + 2 p, W + 2 q)`, its channels last.

    Raises:
        RuntimeError: If a shape or dtype does not fit, or there are more than 2048 channels.
    """
    tensors = (cotangent, normed, scale, residual)
    if is_native(*tensors):
        product: Tensor = call(native.norm_pad_vjp, *tensors, list(padding), list(upsample))
        return product
    return reference.norm_pad_vjp(*tensors, list(padding), list(upsample))


def activation_pad(
    x: Tensor,
    activation: int | None = None,
    padding: Sequence[int] = (0, 0),
    bias: Tensor | None = None,
) -> Tensor:
    r"""Applies an activation to fields, and pads them circularly.

    .. math:: f(x + \text{bias})

    Differentiable with respect to `x` and `bias`, once.

    Arguments:
        x: The fields, with shape :math:`(B, C, H, W)`, float32, float64, bfloat16 or float16, in
            any order in memory.
        activation: The number of the activation: 0 ReLU, 1 ELU, 2 SELU, 3 SiLU, 4 GELU, or None.
        padding: How many rows and columns to pad with on either side.
        bias: What is added to each channel before, with shape :math:`(C)`, float64 beside a
            float64 `x` and float32 otherwise.

    Returns:
        The padded fields, with shape :math:`(B, C, H + 2 p, W + 2 q)` and their channels last in
        memory.

    Raises:
        RuntimeError: If a shape or dtype does not fit, or there are more than 2048 channels.
    """
    if is_native(x, bias):
        padded: Tensor = call(native.activation_pad, x, activation, list(padding), bias)
        return padded
    return reference.activation_pad(x, activation, list(padding), bias)


def activation_pad_vjp(
    cotangent: Tensor,
    x: Tensor,
    activation: int | None = None,
    padding: Sequence[int] = (0, 0),
    bias: Tensor | None = None,
) -> Tensor:
    r"""Returns the vector-Jacobian product of :func:`activation_pad` before its padding, itself
    padded circularly: so the adjoint of a convolution reads it.

    Arguments:
        cotangent: The cotangent, with shape :math:`(B, C, H, W)`, in any order in memory.
        x: The fields, likewise.
        activation: The number of the activation, or None.
        padding: How many rows and columns to pad with on either side.
        bias: What was added to each channel before, or None.

    Returns:
        The padded product, with shape :math:`(B, C, H + 2 p, W + 2 q)`, its channels last.

    Raises:
        RuntimeError: If a shape or dtype does not fit, or there are more than 2048 channels.
    """
    if is_native(cotangent, x, bias):
        operator = native.activation_pad_vjp
        product: Tensor = call(operator, cotangent, x, activation, list(padding), bias)
        return product
    return reference.activation_pad_vjp(cotangent, x, activation, list(padding), bias)


def fold(padded: Tensor, padding: Sequence[int]) -> Tensor:
    """Adds what lies in a circular padding to where it came from: the adjoint of the padding.

    Arguments:
        padded: The cotangent of padded fields, with shape (B, C, H + 2 p, W + 2 q).
        padding: The numbers p and q of rows and columns.
    """
    for dim, pad in zip((2, 3), padding, strict=True):
        if pad == 0:
            continue
        size = padded.shape[dim] - 2 * pad
        before, inner, after = padded.split((pad, size, pad), dim)
        inner = inner.clone()
        inner.narrow(dim, size - pad, pad).add_(before)
        inner.narrow(dim, 0, pad).add_(after)
        padded = inner
    return padded


# What torch asks of the operators


def _channels_last(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape[0], height, width, x.shape[1]).permute(0, 3, 1, 2)


def _fake_norm_pad(
    x: Tensor, shift: Tensor | None, padding: list[int], upsample: list[int], eps: float
) -> tuple[Tensor, Tensor]:
    height, width = (u * n + 2 * p for u, n, p in zip(upsample, x.shape[2:], padding, strict=True))
    scale = reference.widen(x.new_empty(0)).dtype
    fields = x.shape[0], x.shape[2], x.shape[3]
    return _channels_last(x, height, width), x.new_empty(fields, dtype=scale)


def _setup_norm_pad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, shift, ctx.padding, ctx.upsample, _ = inputs
    out, scale = output
    ctx.shift = None if shift is None else len(shift)
    ctx.size = x.shape[2:]
    ctx.mark_non_differentiable(scale)
    ctx.save_for_backward(out, scale)


def _backward_norm_pad(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    out, scale = ctx.saved_tensors
    (height, width), (p, q), (u, v) = ctx.size, ctx.padding, ctx.upsample
    normed = out[:, :, p : p + u * height : u, q : q + v * width : v]
    grad_x = native.norm_pad_vjp(fold(grad, ctx.padding), normed, scale, None, [0, 0], ctx.upsample)
    grad_shift = None
    if ctx.shift is not None:
        grad_shift = grad_x.to(scale.dtype).sum((2, 3)).sum_to_size(ctx.shift, grad_x.shape[1])
    return grad_x, grad_shift, None, None, None


def _fake_norm_pad_vjp(
    cotangent: Tensor, normed: Tensor, scale: Tensor, residual: Tensor | None, *options: list[int]
) -> Tensor:
    return _fake_activation_pad_vjp(cotangent, normed, None, options[0])


def _fake_activation_pad(
    x: Tensor, activation: int | None, padding: list[int], bias: Tensor | None = None
) -> Tensor:
    p, q = padding
    return _channels_last(x, x.shape[2] + 2 * p, x.shape[3] + 2 * q)


def _fake_activation_pad_vjp(
    cotangent: Tensor,
    x: Tensor,
    activation: int | None,
    padding: list[int],
    bias: Tensor | None = None,
) -> Tensor:
    return _fake_activation_pad(x, activation, padding)


def _setup_activation_pad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.activation, ctx.padding, bias = (*inputs, None)[:4]
    ctx.save_for_backward(x, bias)


def _backward_activation_pad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    cotangent = fold(grad, ctx.padding)
    grad_x = native.activation_pad_vjp(cotangent, x, ctx.activation, [0, 0], bias)
    grad_bias = None if bias is None else grad_x.to(bias.dtype).sum((0, 2, 3))
    return grad_x, None, None, grad_bias


def _once(name: str) -> Any:
    def backward(ctx: Any, grad: Tensor) -> None:
        raise NotImplementedError(
            f"{name} has no second derivative; use ops.backend('reference') where it is needed"
        )

    return backward


register("norm_pad", _fake_norm_pad, _setup_norm_pad, _backward_norm_pad)
register("norm_pad_vjp", _fake_norm_pad_vjp, None, _once("norm_pad"))
register("activation_pad", _fake_activation_pad, _setup_activation_pad, _backward_activation_pad)
register("activation_pad_vjp", _fake_activation_pad_vjp, None, _once("activation_pad"))
