"""Gathering the windows of trajectories, and composing what was estimated for them."""

__all__ = ["compose", "compose_denoise", "gather"]

from typing import Any

from torch import Tensor

from .. import reference
from ._batch import join, split
from ._dispatch import call, is_native, native, register


def gather(x: Tensor, start: Tensor, weight: Tensor, *, batch_dims: int = 1) -> Tensor:
    r"""Gathers the windows of trajectories.

    .. math:: w_{n, j} = \text{weight}_{n, j} \, x_{\text{start}_n + j}

    A row of weight 0 is 0 and its state is not read: it may lie beyond the trajectory.

    Arguments:
        x: The trajectories, with shape :math:`(B, L, C, *)`, float32, float64,
            bfloat16 or float16.
        start: The first state of each window, int64 with shape :math:`(N)`, ascending.
        weight: The weights -1, 0 or +1 of the windows' rows, int8 with shape :math:`(N, w)`.
        batch_dims: The number of leading dimensions of `x` that count samples, in row-major
            order: more than one, or 0 for a single sample without a batch.

    Returns:
        The windows, with shape :math:`(B, N, w C, *)`.

    Raises:
        ValueError: If `x` does not have so many dimensions as `batch_dims` says.
        RuntimeError: If a shape or dtype does not fit. On the CPU also if `start` does not ascend
            or a row of non-zero weight lies beyond the trajectory; on a GPU, where looking would
            mean to wait for it, such a row is NaN.
    """
    if batch_dims != 1:
        return split(gather(join("x", x, batch_dims), start, weight), x.shape[:batch_dims])
    if is_native(x):
        return call(native.gather, x, start, weight)
    return reference.gather(x, start, weight)


def compose(
    windows: Tensor, start: Tensor, weight: Tensor, length: int, *, batch_dims: int = 1
) -> Tensor:
    r"""Composes what was estimated for windows into the trajectories', the adjoint of `gather`.

    .. math:: x_i = \sum_{\text{start}_n + j = i} \text{weight}_{n, j} \, w_{n, j}

    The sum is taken in order of :math:`n`, of half types in float32 and rounded once. Rows of
    weight 0 are not read.

    Arguments:
        windows: The windows, with shape :math:`(B, N, w C, *)`, float32, float64,
            bfloat16 or float16.
        start: The first state of each window, int64 with shape :math:`(N)`, ascending.
        weight: The weights -1, 0 or +1 of the windows' rows, int8 with shape :math:`(N, w)`.
        length: The length :math:`L` of the trajectories.
        batch_dims: The number of leading dimensions that count samples, as for :func:`gather`.

    Returns:
        The trajectories, with shape :math:`(B, L, C, *)`.

    Raises:
        RuntimeError: As for :func:`gather`; on a GPU, rows beyond the trajectory are left out.
    """
    if batch_dims != 1:
        samples = compose(join("windows", windows, batch_dims), start, weight, length)
        return split(samples, windows.shape[:batch_dims])
    if is_native(windows):
        return call(native.compose, windows, start, weight, length)
    return reference.compose(windows, start, weight, length)


def compose_denoise(
    windows: Tensor,
    start: Tensor,
    weight: Tensor,
    x: Tensor,
    mu: float,
    sigma: float,
    *,
    batch_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""Composes the windows' noise estimates and denoises with the result.

    The same as :func:`compose` and :func:`denoise`, in one pass over `windows` and `x`.

    Arguments:
        windows: The noise estimates of the windows, with shape :math:`(B, N, w C, *)`, float32,
            float64, bfloat16 or float16.
        start: The first state of each window, int64 with shape :math:`(N)`, ascending.
        weight: The weights -1, 0 or +1 of the windows' rows, int8 with shape :math:`(N, w)`.
        x: The trajectories :math:`x(t)`, with shape :math:`(B, L, C, *)`, of the same dtype.
        mu: The signal level :math:`\mu(t)`, above 0.
        sigma: The noise level :math:`\sigma(t)`.
        batch_dims: The number of leading dimensions that count samples, as for :func:`gather`.

    Returns:
        The noise estimate :math:`\epsilon(x(t), t)` and the denoised :math:`\hat{x}`, both with the
        shape of `x`.

    Raises:
        RuntimeError: As for :func:`compose` and :func:`denoise`.
    """
    if batch_dims != 1:
        batch = x.shape[:batch_dims]
        if windows.shape[:batch_dims] != batch:
            raise RuntimeError(
                f"windows must have the batch of x, {tuple(batch)}, "
                f"but has shape {tuple(windows.shape)}"
            )
        windows, x = join("windows", windows, batch_dims), join("x", x, batch_dims)
        eps, denoised = compose_denoise(windows, start, weight, x, mu, sigma)
        return split(eps, batch), split(denoised, batch)
    if is_native(windows, x):
        operator = native.compose_denoise
        return call(operator, windows, start, weight, x, mu, sigma)
    return reference.compose_denoise(windows, start, weight, x, mu, sigma)


def _fake_gather(x: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    n, w = weight.shape
    return x.new_empty(x.shape[0], n, w * x.shape[2], *x.shape[3:])


def _fake_compose(windows: Tensor, start: Tensor, weight: Tensor, length: int) -> Tensor:
    channels = windows.shape[2] // weight.shape[1]
    return windows.new_empty(windows.shape[0], length, channels, *windows.shape[3:])


def _fake_compose_denoise(
    windows: Tensor, start: Tensor, weight: Tensor, x: Tensor, mu: float, sigma: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, start, weight = inputs
    ctx.save_for_backward(start, weight)
    ctx.length = x.shape[1]


def _backward_gather(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    start, weight = ctx.saved_tensors
    return native.compose(grad, start, weight, ctx.length), None, None


def _setup_compose(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, start, weight, _ = inputs
    ctx.save_for_backward(start, weight)


def _backward_compose(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    start, weight = ctx.saved_tensors
    return native.gather(grad, start, weight), None, None, None


def _setup_compose_denoise(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:
    _, start, weight, _, ctx.mu, ctx.sigma = inputs
    ctx.save_for_backward(start, weight)


def _backward_compose_denoise(
    ctx: Any, grad_eps: Tensor, grad_denoised: Tensor
) -> tuple[Tensor | None, ...]:
    start, weight = ctx.saved_tensors
    grad_eps = native.predictor(grad_eps, grad_denoised, 1.0, -ctx.sigma / ctx.mu)
    grad_windows = native.gather(grad_eps, start, weight)
    return grad_windows, None, None, grad_denoised / ctx.mu, None, None


register("gather", _fake_gather, _setup_gather, _backward_gather)
register("compose", _fake_compose, _setup_compose, _backward_compose)
register(
    "compose_denoise", _fake_compose_denoise, _setup_compose_denoise, _backward_compose_denoise
)
