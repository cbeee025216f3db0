"""Score networks, whole: windows gathered, evaluated and composed in one operator."""

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_BYTES_CUDA",
    "KEPT_BYTES",
    "KEPT_BYTES_CUDA",
    "kept_numbers",
    "kept_rows",
    "mlp_bytes",
    "mlp_score",
    "mlp_score_linearised",
    "too_large",
]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._dispatch import call, fake_like, native, register, transformed

CPU = torch.device("cpu")

# How much of a network's activations is kept for its gradient. What of the windows does not fit is
# computed once more.
KEPT_BYTES = 10 << 20
KEPT_BYTES_CUDA = 1 << 28
# What windows' results take at the most before they are composed, as in csrc/cpu/mlp_score.cpp and
# csrc/cuda/launch.h.
CHUNK_BYTES = 4 << 20
CHUNK_BYTES_CUDA = 1 << 26


def kept_rows(widths: list[int], bfloat16: bool = False, device: torch.device = CPU) -> int:
    """Returns of how many windows :func:`mlp_score` keeps the activations for its gradient."""
    most = KEPT_BYTES_CUDA if device.type == "cuda" else KEPT_BYTES
    return most // (4 * kept_numbers(widths, bfloat16, device))


def mlp_bytes(
    widths: list[int],
    windows: int,
    gradient: bool,
    bfloat16: bool = False,
    device: torch.device = CPU,
) -> int:
    """Returns about how much memory :func:`mlp_score` takes for a number of windows beside what it
    is given and returns: their results, and what it keeps for its gradient."""
    most = CHUNK_BYTES_CUDA if device.type == "cuda" else CHUNK_BYTES
    results = min(4 * windows * widths[-1], most)
    if not gradient:
        return results
    kept = min(windows, kept_rows(widths, bfloat16, device))
    return results + 4 * kept * kept_numbers(widths, bfloat16, device)


def mlp_score(
    x: Tensor,
    start: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    weights: Tensor,
    transposed: Tensor,
    widths: list[int],
    activation: int,
    length_aware: bool,
    bfloat16: bool,
    tf32: bool = False,
) -> Tensor:
    r"""Evaluates a residual MLP on the windows of trajectories and composes what it returns.

    The same as :func:`gather`, the network and :func:`compose`, in one pass that keeps the
    activations of a few windows in cache. Differentiable with respect to `x`, once; the weights
    are constants. :class:`sda_fast.fused.FusedMLP` packs the weights.

    Arguments:
        x: The trajectories, with shape :math:`(B, L, D)`, float32.
        start: The first state of each window, int64 with shape :math:`(N)`, ascending.
        mask: Which rows of the windows are states, int8 with shape :math:`(N, w)`.
        weight: The weights -1, 0 or +1 of the windows' rows in the composition, like `mask`.
        bias: The first layer's bias, time and context included, with shape (1 or B, width) and
            padded with zeros.
        weights: The other weights, packed.
        transposed: The transposed weights, packed, for the gradient.
        widths: The widths of the residual blocks; the last is :math:`w D`.
        activation: The number of the activation: 0 ReLU, 1 ELU, 2 SELU, 3 SiLU,
            4 GELU.
        length_aware: Whether the mask is an input of the network.
        bfloat16: Whether the factors of the network's products are rounded to bfloat16; the
            weights are then packed so. Their sums and all else are float32.
        tf32: Whether they are rounded to TF32, on CUDA.

    Returns:
        The composed estimate, with shape :math:`(B, L, D)`.

    Raises:
        RuntimeError: If a shape or dtype does not fit, or it is transformed by :mod:`torch.func` or
            differentiated in forward mode.
    """
    tensors = (x, start, mask, weight, bias, weights, transposed)
    _check_plain(x, bias, weights)
    options = (widths, activation, length_aware, bfloat16, tf32)
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    rows = _rows(x, start, widths, bfloat16) if needs_grad else 0
    return call(native.mlp_score, *tensors, *options, rows)[0]


def mlp_score_linearised(
    x: Tensor,
    start: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    weights: Tensor,
    transposed: Tensor,
    widths: list[int],
    activation: int,
    length_aware: bool,
    bfloat16: bool,
    tf32: bool = False,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Evaluates :func:`mlp_score`, and returns its vector-Jacobian product at x as well, a function
    from cotangents (B, L, D) to the same shape, without autograd."""
    tensors = (x, start, mask, weight, bias, weights, transposed)
    _check_plain(x, bias, weights)
    options = (widths, activation, length_aware, bfloat16, tf32)
    rows = _rows(x, start, widths, bfloat16)
    with torch.no_grad():
        eps, kept = call(native.mlp_score, *tensors, *options, rows)

    def vjp(cotangent: Tensor) -> Tensor:
        operator = native.mlp_score_vjp
        with torch.no_grad():
            product: Tensor = call(operator, cotangent, *tensors, kept, *options)
        return product

    return eps, vjp


def _check_plain(*tensors: Tensor) -> None:
    """Checks that there is no transformation: it has no reference to leave that to."""
    if not torch.compiler.is_compiling() and (why := transformed(tensors)) is not None:
        raise RuntimeError(f"mlp_score cannot be transformed: {why}")


def _rows(x: Tensor, start: Tensor, widths: list[int], bfloat16: bool) -> int:
    """Returns of how many windows the activations are kept for a gradient."""
    # up to a tile more than there are windows, since tiles are kept as a whole
    return min(x.shape[0] * start.shape[0] + 32, kept_rows(widths, bfloat16, x.device))


def kept_numbers(widths: list[int], bfloat16: bool = False, device: torch.device = CPU) -> int:
    """Returns how many numbers of float32 the way back needs of a window, as in
    csrc/kernels/mlp_score.h, where it takes pairs of bfloat16 for one, and mlp_tile.h."""
    if device.type == "cuda":
        return sum(_padded(n, 32) for n in (*widths, *widths, len(widths)))
    return sum((1 if bfloat16 else 2) * _padded(width, 8) + 1 for width in widths)


def _padded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def too_large(widths: list[int], inputs: int, bfloat16: bool, shared: int) -> str | None:
    """Returns why :func:`mlp_score` cannot serve a network on CUDA, or None if it can.

    Arguments:
        widths: The widths of the residual blocks.
        inputs: The number of inputs that are states or mask.
        bfloat16: Whether the factors of products are bfloat16.
        shared: The bytes of shared memory that a thread block may ask for.
    """
    if len(widths) > 512:
        return f"on CUDA the fused network has at most 512 residual blocks, not {len(widths)}"
    widest = _padded(max(widths), 32)
    if widest > 2176:
        return f"on CUDA the fused network is at most 2176 features wide, not {max(widths)}"

    # the smallest tile, of 8 windows, as in csrc/kernels/mlp_tile.h
    factors = _padded(max(widest, _padded(inputs, 32)) * (2 if bfloat16 else 4), 128)
    tile = 8 * (4 * (widest + 4) + factors + 24 + 9 * 8)
    if tile > shared:
        return f"a tile of 8 windows takes {tile} bytes of shared memory, and the GPU has {shared}"
    return None


def _fake_mlp_score(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    *_, widths, _, _, bfloat16, _, kept_rows = inputs
    kept = x.new_empty(kept_rows, kept_numbers(widths, bfloat16, x.device))
    return x.new_empty(x.shape), kept


def _setup_mlp_score(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.options = inputs[:7], inputs[7:-1]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward_mlp_score(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = native.mlp_score_vjp(grad, *ctx.saved_tensors, *ctx.options)
    return grad_x, *(None,) * 12


def _backward_mlp_score_vjp(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "mlp_score has no second derivative; use ops.backend('reference') where it is needed"
    )


register("mlp_score", _fake_mlp_score, _setup_mlp_score, _backward_mlp_score)
register("mlp_score_vjp", fake_like, None, _backward_mlp_score_vjp)
