"""The corrector's step and the normal numbers that it adds, functions of their place alone.

References:
    | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011)
    | https://doi.org/10.1145/2063384.2063405
"""

__all__ = ["check_stream", "langevin", "langevin_", "philox_normal_"]

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._batch import check_alike, in_place, join, split
from ._dispatch import call, fake_in_place, fake_like, is_native, native, register


def check_stream(seed: int, step: int, correction: int, first_sample: int) -> dict[str, int]:
    """Checks the place of a stream of noise. The native schema has signed 64-bit numbers."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits, but is {seed}")
    for name, value, limit in (
        ("step", step, 2**32),
        ("correction", correction, 2**16),
        ("first_sample", first_sample, 2**32),
    ):
        if not 0 <= value < limit:
            bits = limit.bit_length() - 1
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
    batch_dims: int = 1,
) -> Tensor:
    r"""Takes a Langevin correction (Rozet & Louppe 2023, algorithm 4).

    .. math::
        \delta & = \tau / \operatorname{mean}(\epsilon^2) \\
        x' & = x - \sigma \, (\delta \epsilon + \sqrt{2 \delta} \, z)

    with one :math:`\delta` per sample, the mean over all its elements, and :math:`z` the numbers of
    :func:`philox_normal_`. A sample whose :math:`\epsilon` is zero everywhere is left as it is. The
    result does not depend on the number of threads.

    Arguments:
        x: The states, with shape :math:`(B, *)`, float32, float64, bfloat16 or float16;
            the arithmetic of the half types is float32, rounded once.
        eps: The noise estimates :math:`\epsilon(x, t)`, of the same shape and dtype.
        sigma: The noise level :math:`\sigma(t)`.
        tau: The amplitude :math:`\tau` of the correction.
        seed: The key of the random numbers, an integer of 64 bits.
        step: The number of the predictor step before this correction, below :math:`2^{32}`.
        correction: The number of this correction among those of its step, below :math:`2^{16}`.
        first_sample: The number of the batch's first sample: a batch that is worked on in parts
            gets the numbers of the whole.
        batch_dims: The number of leading dimensions that count samples, in row-major order: more
            than one, or 0 for a single sample without a batch.

    Returns:
        The corrected states, of the same shape.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ.
        ValueError: If a number of the stream or `batch_dims` is out of range.
    """
    stream = check_stream(seed, step, correction, first_sample)
    if batch_dims != 1:
        check_alike("eps", eps, x)
        batch, x, eps = x.shape[:batch_dims], join("x", x, batch_dims), join("eps", eps, batch_dims)
        return split(langevin(x, eps, sigma, tau, **stream), batch)
    if is_native(x, eps):
        return call(native.langevin, x, eps, sigma, tau, *stream.values())
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
    batch_dims: int = 1,
) -> None:
    """Takes the correction of :func:`langevin` in place, on an `x` of any strides."""
    stream = check_stream(seed, step, correction, first_sample)
    if batch_dims != 1:
        check_alike("eps", eps, x)
        beside = join("eps", eps, batch_dims)
        in_place("x", x, batch_dims, lambda x: langevin_(x, beside, sigma, tau, **stream))
    elif is_native(x, eps, in_place=True):
        native.langevin_(x, eps, sigma, tau, *stream.values())
    else:
        reference.langevin_(x, eps, sigma, tau, **stream)


def philox_normal_(
    out: Tensor,
    *,
    seed: int,
    step: int,
    correction: int = 0,
    first_sample: int = 0,
    batch_dims: int = 1,
) -> None:
    r"""Fills a tensor with standard normal numbers that are a function of their place alone.

    Element :math:`e` of sample :math:`s` at a step and correction comes from word
    :math:`e \bmod 4` of Philox4x32-10 (Salmon et al. 2011) at the counter :math:`(\lfloor e/4
    \rfloor, s, \text{step}, \text{correction})` under the key `seed`, by the Box-Muller transform:
    whatever the batch, the device, the number of threads or, to rounding, the type.

    Arguments:
        out: The tensor to fill, with shape :math:`(B, *)`, float32, float64, bfloat16 or
            float16.
        seed: The key, an integer of 64 bits.
        step: The step, below :math:`2^{32}`.
        correction: The correction, below :math:`2^{16}`.
        first_sample: The number of the batch's first sample, below :math:`2^{32}`.
        batch_dims: The number of leading dimensions that count samples, as for :func:`langevin`.

    Raises:
        ValueError: If a number of the stream or `batch_dims` is out of range.
    """
    stream = check_stream(seed, step, correction, first_sample)
    if batch_dims != 1:
        in_place("out", out, batch_dims, lambda out: philox_normal_(out, **stream))
    elif is_native(out, in_place=True):
        native.philox_normal_(out, *stream.values())
    else:
        reference.philox_normal_(out, **stream)


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
    dtype = grad.dtype
    grad_x, grad, eps = grad, reference.widen(grad), reference.widen(*ctx.saved_tensors)
    size = max(1, math.prod(eps.shape[1:]))
    event = tuple(range(1, eps.ndim)) or None

    def over_event(x: Tensor) -> Tensor:
        return x if event is None else x.sum(dim=event, keepdim=True)

    z = torch.empty(eps.shape, dtype=eps.dtype, device=eps.device)
    native.philox_normal_(z, *ctx.stream)

    mean = over_event(eps.square()) / size
    still = mean == 0
    delta = torch.where(still, 0.0, ctx.tau / torch.where(still, 1.0, mean))
    # the root's slope at zero is infinite: keep it away from samples that do not move
    half = torch.where(still, 0.0, torch.sqrt(torch.where(still, 1.0, delta) / 2))
    along = over_event(grad * (delta * eps + half * z))
    scale = torch.where(still, 0.0, 2 / (size * torch.where(still, 1.0, mean)))

    grad_eps = ctx.sigma * (scale * along * eps - delta * grad)
    return grad_x, grad_eps.to(dtype), None, None, None, None, None, None


register("langevin", fake_like, _setup_langevin, _backward_langevin)
register("langevin_", fake_in_place)
register("philox_normal_", fake_in_place)
