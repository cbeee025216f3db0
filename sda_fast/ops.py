r"""The operators: gather and compose windows, take predictor and Langevin steps.

Each function computes natively where the native library can serve its tensors, and otherwise by the
function of the same name in :mod:`sda_fast.reference`, whose numbers it matches to rounding.
:func:`backend` forces one or the other, :func:`unserved` says which it would be and why.

The functions that return a tensor are differentiable, twice and more, and may be compiled.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023)
    | https://arxiv.org/abs/2306.10574
    | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011)
    | https://doi.org/10.1145/2063384.2063405
"""

__all__ = [
    "backend",
    "compose",
    "gather",
    "is_native",
    "langevin",
    "langevin_",
    "mlp_score",
    "philox_normal_",
    "predictor",
    "predictor_",
    "unserved",
]

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from . import _native, reference

BACKENDS = ("auto", "native", "reference")

# How much of a network's activations is kept for its gradient. What of the windows does not fit is
# computed once more.
KEPT_BYTES = 1 << 24

_backend: ContextVar[str] = ContextVar("sda_fast.backend", default="auto")
_traced = (
    "auto"  # the same for torch.compile, which guards on a global but cannot read a ContextVar
)
_warned = False


# Which backend


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Sets the backend of the operators for a `with` block.

    Arguments:
        name: `"auto"` (native where it can serve), `"native"` (an error where it cannot) or
            `"reference"` (pure PyTorch).
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, but is {name!r}")

    global _traced

    token, traced, _traced = _backend.set(name), _traced, name
    try:
        yield
    finally:
        _backend.reset(token)
        _traced = traced


def unserved(x: Tensor) -> str | None:
    """Returns why the native operators cannot serve a tensor, or None if they can."""
    if not _native.available:
        return _native.reason
    if x.dtype not in (torch.float32, torch.float64):
        return f"the native operators serve float32 and float64, not {str(x.dtype)[6:]}"
    if x.device.type == "cuda":
        return _native.device_reason(x.device.index)
    if x.device.type != "cpu":
        return f"there are no native operators for the device {x.device.type}"
    return None


def _transformed(*tensors: Tensor) -> str | None:
    """Returns why tensors inside a transformation cannot be served, or None if they can be."""
    if torch.compiler.is_compiling():
        return None
    if any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors):
        return "the native operators do not serve the transformations of torch.func"
    if torch.autograd.forward_ad._current_level >= 0 and any(
        torch.autograd.forward_ad.unpack_dual(x).tangent is not None for x in tensors
    ):
        return "the native operators do not serve forward-mode differentiation"
    return None


def _need_grad(tensors: tuple[Tensor, ...]) -> bool:
    return any(x.requires_grad for x in tensors)


def is_native(*tensors: Tensor, in_place: bool = False) -> bool:
    """Says whether an operator on floating-point tensors is to run natively.

    Arguments:
        tensors: Its floating-point arguments; the first decides, and all may carry gradients.
        in_place: Whether it changes the first, of which the native operator keeps no gradient.
    """
    global _warned

    name = _traced if torch.compiler.is_compiling() else _backend.get()
    if name == "reference":
        return False

    reason = unserved(tensors[0]) or _transformed(*tensors)
    if reason is None and in_place and torch.is_grad_enabled() and _need_grad(tensors):
        reason = "the native operators in place keep no gradients (use torch.no_grad)"
    if reason is None:
        return True

    if name == "native":
        raise RuntimeError(f"the backend is native, but {reason}")
    if not (_native.available or _warned or torch.compiler.is_compiling()):
        _warned = True
        warnings.warn(
            f"{reason}; falling back to the pure PyTorch reference, which is slower",
            UserWarning,
            stacklevel=4,
        )
    return False


# Windows


def gather(x: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    r"""Gathers the windows of trajectories.

    .. math:: w_{n, j} = \text{weight}_{n, j} \, x_{\text{start}_n + j}

    A row of weight 0 is 0 and its state is not read: it may lie beyond the trajectory.

    Arguments:
        x: The trajectories, with shape :math:`(B, L, C, *)`, float32 or float64.
        start: The first state of each window, int64 with shape :math:`(N)`, ascending.
        weight: The weights -1, 0 or +1 of the windows' rows, int8 with shape :math:`(N, w)`.

    Returns:
        The windows, with shape :math:`(B, N, w C, *)`.

    Raises:
        RuntimeError: If a shape or dtype does not fit. On the CPU also if `start` does not ascend
            or a row of non-zero weight lies beyond the trajectory; on a GPU, where looking would
            mean to wait for it, such a row is NaN.
    """
    if is_native(x):
        return torch.ops.sda_fast.gather.default(x, start, weight)
    return reference.gather(x, start, weight)


def compose(windows: Tensor, start: Tensor, weight: Tensor, length: int) -> Tensor:
    r"""Composes what was estimated for windows into the trajectories', the adjoint of `gather`.

    .. math:: x_i = \sum_{\text{start}_n + j = i} \text{weight}_{n, j} \, w_{n, j}

    The sum is taken in order of :math:`n`. Rows of weight 0 are not read.

    Arguments:
        windows: The windows, with shape :math:`(B, N, w C, *)`, float32 or float64.
        start: The first state of each window, int64 with shape :math:`(N)`, ascending.
        weight: The weights -1, 0 or +1 of the windows' rows, int8 with shape :math:`(N, w)`.
        length: The length :math:`L` of the trajectories.

    Returns:
        The trajectories, with shape :math:`(B, L, C, *)`.

    Raises:
        RuntimeError: As for :func:`gather`; on a GPU, rows beyond the trajectory are left out.
    """
    if is_native(windows):
        return torch.ops.sda_fast.compose.default(windows, start, weight, length)
    return reference.compose(windows, start, weight, length)


# Predictor


def predictor(x: Tensor, eps: Tensor, r: float, b: float) -> Tensor:
    r"""Takes a step of the exponential integrator (Rozet & Louppe 2023, section 3.3).

    .. math:: x(t') = r \, x(t) + b \, \epsilon(x(t), t)

    Arguments:
        x: The state :math:`x(t)`, with any shape, float32 or float64.
        eps: The noise estimate :math:`\epsilon(x(t), t)`, of the same shape and dtype.
        r: The ratio :math:`\mu(t') / \mu(t)`.
        b: The difference :math:`\sigma(t') - r \sigma(t)`.

    Returns:
        The state :math:`x(t')`, of the same shape.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ.
    """
    if is_native(x, eps):
        return torch.ops.sda_fast.predictor.default(x, eps, r, b)
    return reference.predictor(x, eps, r, b)


def predictor_(x: Tensor, eps: Tensor, r: float, b: float) -> None:
    """Takes the step of :func:`predictor` in place, on an `x` of any strides."""
    if is_native(x, eps, in_place=True):
        torch.ops.sda_fast.predictor_.default(x, eps, r, b)
    else:
        reference.predictor_(x, eps, r, b)


# Corrector


def _stream(seed: int, step: int, correction: int, first_sample: int) -> dict[str, int]:
    """Checks the place of a stream of noise. The native schema has signed 64-bit numbers."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits, but is {seed}")
    for name, value, bits in (
        ("step", step, 32),
        ("correction", correction, 16),
        ("first_sample", first_sample, 32),
    ):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} must be at least 0 and below 2^{bits}, but is {value}")

    return {
        "seed": seed - 2**64 if seed >= 2**63 else seed,
        "step": step,
        "correction": correction,
        "first_sample": first_sample,
    }


def langevin(
    x: Tensor,
    eps: Tensor,
    sigma: float,
    tau: float,
    *,
    seed: int,
    step: int,
    correction: int = 0,
    first_sample: int = 0,
) -> Tensor:
    r"""Takes a Langevin correction (Rozet & Louppe 2023, algorithm 4).

    .. math::
        \delta & = \tau / \operatorname{mean}(\epsilon^2) \\
        x' & = x - \sigma \, (\delta \epsilon + \sqrt{2 \delta} \, z)

    with one :math:`\delta` per sample, the mean over all its elements, and :math:`z` the numbers of
    :func:`philox_normal_`. A sample whose :math:`\epsilon` is zero everywhere is left as it is. The
    result does not depend on the number of threads.

    Arguments:
        x: The states, with shape :math:`(B, *)`, float32 or float64.
        eps: The noise estimates :math:`\epsilon(x, t)`, of the same shape and dtype.
        sigma: The noise level :math:`\sigma(t)`.
        tau: The amplitude :math:`\tau` of the correction.
        seed: The key of the random numbers, an integer of 64 bits.
        step: The number of the predictor step before this correction, below :math:`2^{32}`.
        correction: The number of this correction among those of its step, below :math:`2^{16}`.
        first_sample: The number of the batch's first sample: a batch that is worked on in parts
            gets the numbers of the whole.

    Returns:
        The corrected states, of the same shape.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ.
        ValueError: If a number of the stream is out of range.
    """
    stream = _stream(seed, step, correction, first_sample)
    if is_native(x, eps):
        return torch.ops.sda_fast.langevin.default(x, eps, sigma, tau, **stream)
    return reference.langevin(x, eps, sigma, tau, **stream)


def langevin_(
    x: Tensor,
    eps: Tensor,
    sigma: float,
    tau: float,
    *,
    seed: int,
    step: int,
    correction: int = 0,
    first_sample: int = 0,
) -> None:
    """Takes the correction of :func:`langevin` in place, on an `x` of any strides."""
    stream = _stream(seed, step, correction, first_sample)
    if is_native(x, eps, in_place=True):
        torch.ops.sda_fast.langevin_.default(x, eps, sigma, tau, **stream)
    else:
        reference.langevin_(x, eps, sigma, tau, **stream)


def philox_normal_(
    out: Tensor, *, seed: int, step: int, correction: int = 0, first_sample: int = 0
) -> None:
    r"""Fills a tensor with standard normal numbers that are a function of their place alone.

    Element :math:`e` of sample :math:`s` at a step and correction comes from word
    :math:`e \bmod 4` of Philox4x32-10 (Salmon et al. 2011) at the counter :math:`(\lfloor e/4
    \rfloor, s, \text{step}, \text{correction})` under the key `seed`, by the Box-Muller transform:
    whatever the batch, the device, the number of threads or, to rounding, the type.

    Arguments:
        out: The tensor to fill, with shape :math:`(B, *)`, float32 or float64.
        seed: The key, an integer of 64 bits.
        step: The step, below :math:`2^{32}`.
        correction: The correction, below :math:`2^{16}`.
        first_sample: The number of the batch's first sample, below :math:`2^{32}`.

    Raises:
        ValueError: If a number of the stream is out of range.
    """
    stream = _stream(seed, step, correction, first_sample)
    if is_native(out, in_place=True):
        torch.ops.sda_fast.philox_normal_.default(out, **stream)
    else:
        reference.philox_normal_(out, **stream)


# Networks


def kept_rows(widths: list[int]) -> int:
    """Returns of how many windows :func:`mlp_score` keeps the activations for its gradient."""
    return KEPT_BYTES // (4 * _kept(widths))


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
) -> Tensor:
    r"""Evaluates a residual MLP on the windows of trajectories and composes what it returns.

    The same as :func:`gather`, the network and :func:`compose`, in one pass that keeps the
    activations of a few windows in cache. Differentiable with respect to `x`, once; the weights
    are constants. :class:`sda_fast.fused.FusedMLP` packs the weights.

    Arguments:
        x: The trajectories, with shape :math:`(B, L, D)`, float32 on the CPU.
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

    Returns:
        The composed estimate, with shape :math:`(B, L, D)`.

    Raises:
        RuntimeError: If a shape or dtype does not fit.
    """
    rows = 0
    if torch.is_grad_enabled() and x.requires_grad:
        # up to a tile more than there are windows, since tiles are kept as a whole
        rows = min(x.shape[0] * start.shape[0] + 32, kept_rows(widths))

    tensors = (x, start, mask, weight, bias, weights, transposed)
    return torch.ops.sda_fast.mlp_score.default(
        *tensors, widths, activation, length_aware, bfloat16, rows
    )[0]


# What torch asks of an operator: the shape of its result, and its gradient


def _on_one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a fake refuse tensors of several devices: a real one among them would be answered with
    memory that nothing was written to."""

    def checked(*inputs: Any) -> Any:
        devices = [str(x.device) for x in inputs if isinstance(x, Tensor)]
        if len(set(devices)) > 1:
            raise RuntimeError(
                f"the tensors of {name} must be on the same device, but are on {', '.join(devices)}"
            )
        return fake(*inputs)

    return checked


def _fake_gather(x: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    n, w = weight.shape
    return x.new_empty(x.shape[0], n, w * x.shape[2], *x.shape[3:])


def _fake_compose(windows: Tensor, start: Tensor, weight: Tensor, length: int) -> Tensor:
    channels = windows.shape[2] // weight.shape[1]
    return windows.new_empty(windows.shape[0], length, channels, *windows.shape[3:])


def _fake_like(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _fake_in_place(*_: Any) -> None:
    return None


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, start, weight = inputs
    ctx.save_for_backward(start, weight)
    ctx.length = x.shape[1]


def _backward_gather(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    start, weight = ctx.saved_tensors
    return torch.ops.sda_fast.compose.default(grad, start, weight, ctx.length), None, None


def _setup_compose(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, start, weight, _ = inputs
    ctx.save_for_backward(start, weight)


def _backward_compose(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    start, weight = ctx.saved_tensors
    return torch.ops.sda_fast.gather.default(grad, start, weight), None, None, None


def _setup_predictor(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.r, ctx.b = inputs


def _backward_predictor(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return ctx.r * grad, ctx.b * grad, None, None


def _setup_langevin(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, eps, ctx.sigma, ctx.tau, *ctx.stream = inputs
    ctx.save_for_backward(eps)


def _backward_langevin(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    r"""With :math:`m = \operatorname{mean}(\epsilon^2)` over :math:`M` elements, the gradient is

    .. math::
        \bar\epsilon = -\sigma \delta \bar{x}' + \frac{2 \sigma}{M m} \,
        \langle \bar{x}', \delta \epsilon + \sqrt{\delta / 2} \, z \rangle \, \epsilon

    where the second term comes from :math:`\delta`, and :math:`z` is generated once more.
    """
    (eps,) = ctx.saved_tensors
    size = max(1, math.prod(eps.shape[1:]))
    event = tuple(range(1, eps.ndim)) or None

    def over_event(x: Tensor) -> Tensor:
        return x if event is None else x.sum(dim=event, keepdim=True)

    z = torch.empty(eps.shape, dtype=eps.dtype, device=eps.device)
    torch.ops.sda_fast.philox_normal_.default(z, *ctx.stream)

    mean = over_event(eps.square()) / size
    still = mean == 0
    delta = torch.where(still, 0.0, ctx.tau / torch.where(still, 1.0, mean))
    # the root's slope at zero is infinite: keep it away from samples that do not move
    half = torch.where(still, 0.0, torch.sqrt(torch.where(still, 1.0, delta) / 2))
    along = over_event(grad * (delta * eps + half * z))
    scale = torch.where(still, 0.0, 2 / (size * torch.where(still, 1.0, mean)))

    grad_eps = ctx.sigma * (scale * along * eps - delta * grad)
    return grad, grad_eps, None, None, None, None, None, None


def _kept(widths: list[int]) -> int:
    """Returns how many numbers the way back needs of a window, as in csrc/kernels/mlp_score.h."""
    return sum(2 * -(-width // 8) * 8 + 1 for width in widths)


def _fake_mlp_score(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    *_, widths, _, _, _, kept_rows = inputs
    return x.new_empty(x.shape), x.new_empty(kept_rows, _kept(widths))


def _setup_mlp_score(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.widths, ctx.activation, ctx.length_aware, ctx.bfloat16, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward_mlp_score(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = torch.ops.sda_fast.mlp_score_vjp.default(
        grad, *ctx.saved_tensors, ctx.widths, ctx.activation, ctx.length_aware, ctx.bfloat16
    )
    return grad_x, *(None,) * 11


def _backward_mlp_score_vjp(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "mlp_score has no second derivative; use ops.backend('reference') where it is needed"
    )


if _native.available:
    for _name, _fake in (
        ("gather", _fake_gather),
        ("compose", _fake_compose),
        ("predictor", _fake_like),
        ("predictor_", _fake_in_place),
        ("langevin", _fake_like),
        ("langevin_", _fake_in_place),
        ("mlp_score", _fake_mlp_score),
        ("mlp_score_vjp", _fake_like),
        ("philox_normal_", _fake_in_place),
    ):
        torch.library.register_fake(f"sda_fast::{_name}", _on_one_device(_name, _fake))

    for _name, _backward, _setup in (
        ("gather", _backward_gather, _setup_gather),
        ("compose", _backward_compose, _setup_compose),
        ("predictor", _backward_predictor, _setup_predictor),
        ("langevin", _backward_langevin, _setup_langevin),
        ("mlp_score", _backward_mlp_score, _setup_mlp_score),
        ("mlp_score_vjp", _backward_mlp_score_vjp, None),
    ):
        torch.library.register_autograd(f"sda_fast::{_name}", _backward, setup_context=_setup)
