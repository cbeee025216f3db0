"""Convolutions with kernels of 3 x 3 points in a quarter of the multiplications, and of 1 x 3 in
half."""

__all__ = ["winograd", "winograd_", "winograd_kernel"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._dispatch import call, fake_in_place, is_native, native, need_grad, register

winograd_kernel = reference.winograd_kernel


def winograd(
    x: Tensor, kernel: Tensor, bias: Tensor | None = None, padding: Sequence[int] = (0, 0)
) -> Tensor:
    r"""Convolves fields with kernels of 3 x 3 points by Winograd's minimal filtering
    :math:`F(4 \times 4, 3 \times 3)`, or of 1 x 3 points by :math:`F(4, 3)`.

    .. math:: Y = A^T \left[ \sum_\text{in} (G g G^T) \odot (B^T d B) \right] A

    makes a tile :math:`Y` of 4 x 4 points of the 6 x 6 points :math:`d` that it depends on, with 36
    multiplications for each pair of channels in place of 144. Of a row, 4 points
    :math:`A^T [\sum G g \odot B^T d]` take 6 in place of 12. Natively so on a CPU in float32 and
    without a gradient, by the reference elsewhere. The maps are those of polynomials at 0,
    :math:`\pm 5/8`, :math:`\pm 3/2` and infinity, with which errors are within twice those of a
    direct sum. Where a point is not finite, no result is whose tile depends on it.

    References:
        | Fast Algorithms for Convolutional Neural Networks (Lavin & Gray, 2016)
        | https://arxiv.org/abs/1509.09308

    Arguments:
        x: The fields, with shape :math:`(B, \text{in}, H, W)`, in any order in memory; natively
            float32 of a multiple of 16 channels.
        kernel: The kernels as :func:`winograd_kernel` returns them.
        bias: What is added to each channel, with shape (out).
        padding: How many rows and columns of zeros to pad with on either side.

    Returns:
        The convolved fields, with shape :math:`(B, \text{out}, H + 2 p - 2, W + 2 q - 2)`, or
        with :math:`H + 2 p` rows where the kernel has one, natively with their channels last in
        memory.

    Raises:
        RuntimeError: If a shape or dtype does not fit, or there are more than 2048 channels.
    """
    if _served(x, kernel, bias):
        y: Tensor = call(native.winograd, x, kernel, bias, list(padding))
        return y
    return reference.winograd(x, kernel, bias, list(padding))


def winograd_(
    onto: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    padding: Sequence[int] = (0, 0),
) -> None:
    r"""Adds what :func:`winograd` returns to fields, in place.

    Arguments:
        onto: The fields, with the shape of the result.
        x: The fields that are convolved.
        kernel: The kernels as :func:`winograd_kernel` returns them.
        bias: What is added to each channel, with shape (out).
        padding: How many rows and columns of zeros to pad with on either side.

    Raises:
        RuntimeError: If a shape or dtype does not fit, or there are more than 2048 channels.
    """
    if _served(onto, x, kernel, bias):
        call(native.winograd_, onto, x, kernel, bias, list(padding))
    else:
        reference.winograd_(onto, x, kernel, bias, list(padding))


def _served(*tensors: Tensor | None) -> bool:
    """Says whether convolutions run natively."""
    first, *others = tensors
    assert first is not None
    plain = first.is_cpu and first.dtype == torch.float32 and not need_grad(tensors)
    return plain and is_native(first, *others)


def _fake_winograd(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: list[int]) -> Tensor:
    (b, _, height, width), outputs = x.shape, kernel.shape[1] * 16
    h, w = height + 2 * padding[0] - 2 * (len(kernel) != 6), width + 2 * padding[1] - 2
    return x.new_empty_strided((b, outputs, h, w), (h * w * outputs, 1, w * outputs, outputs))


def _backward_winograd(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("the native winograd has no gradient; ops.winograd has")


register("winograd", _fake_winograd, None, _backward_winograd)
register("winograd_", fake_in_place)
