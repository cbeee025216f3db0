r"""The predictor-corrector sampler.

From noise :math:`x(1)` a predictor follows the probability flow through a time grid
:math:`1 = t_0 > ... > t_N = 0` by an exponential integrator (Rozet & Louppe, 2023, algorithm 4),

.. math:: x(t_n) = r \, x(t_{n-1}) + (\sigma(t_n) - r \sigma(t_{n-1})) \,
    \epsilon(x(t_{n-1}), t_{n-1}), \qquad r = \mu(t_n) / \mu(t_{n-1})

and after each of its steps a corrector takes C Langevin steps at the new time,

.. math:: x \gets x - \sigma(t_n) (\delta \epsilon + \sqrt{2 \delta} z), \qquad
    \delta = \tau / \operatorname{mean}(\epsilon^2)

The initial noise and every :math:`z` are counter-based, so that a sample is a function of the seed
and of its number alone.
"""

__all__ = ["Explanation", "explain", "sample"]

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor
from tqdm import tqdm

from . import ops, recognise
from .schedule import adams_bashforth, coefficients
from .score import MCScoreNet, sampling

# On an accelerator a look at the state waits for the device, so it is taken only this often.
CHECK_EVERY = 16


def sample(
    sde: Any,
    shape: Sequence[int] = (),
    c: Tensor | None = None,
    steps: int = 64,
    corrections: int = 0,
    tau: float = 1.0,
    *,
    x1: Tensor | None = None,
    seed: int | None = None,
    order: int = 1,
    window_batch: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    progress: bool = False,
    callback: Callable[[int, float, Tensor], Any] | None = None,
) -> Tensor:
    r"""Draws samples of a noise process, by its network or its guidance module.

    The process is one of this package's or any object with the same parts: `shape`, the event
    shape; `eps(x, t, c)`, which maps states (B, *event), a time () and the context to noise of the
    states' shape; `mu(t)` and `sigma(t)`.

    Arguments:
        sde: The noise process.
        shape: The batch shape.
        c: The context that is passed to `sde.eps`.
        steps: The number N of predictor steps.
        corrections: The number C of Langevin corrections after each predictor step.
        tau: The amplitude :math:`\tau` of the corrections.
        x1: The initial noise :math:`x(1)`, with shape (*shape, *event). Drawn by default.
        seed: The seed of all randomness, an integer. By default drawn from torch's generator.
        order: The order of the predictor: 1, the paper's, or 2 or 3, which also use the estimates
            of the steps before (exponential Adams-Bashforth).
        window_batch: The number of windows, over all samples, that a composed network evaluates
            in one call. By default all at once. Less saves memory; the samples are the same, bit
            for bit where the network is fused (:func:`explain`) and to rounding elsewhere.
        dtype: The type of the state. By default that of the network's parameters.
        backend: "native", "reference" (pure PyTorch) or "auto", which falls back where a native
            operator cannot serve.
        progress: Whether to show a progress bar.
        callback: Called after each step with the number of the step, its time and the state,
            with shape (*shape, *event). The state is that of the sampler: clone what you keep.

    Returns:
        The samples, with shape (*shape, *event).

    Raises:
        ValueError: An argument is out of its range, or of a shape that does not fit.
        TypeError: A dtype does not fit.
        RuntimeError: backend="native" and a native operator cannot serve.
        FloatingPointError: A state is not finite. It says at which step, time and noise level, and
            which sample.
    """
    _check(steps, corrections, tau, order, window_batch)
    batch, event = Size(shape), Size(sde.shape)
    device, dtype = _placement(sde, x1, dtype)

    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    elif not _is_integer(seed, 0, 2**64 - 1):
        raise ValueError(f"seed must be a non-negative integer below 2^64, got {seed}")

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(ops.backend(backend))
        stack.enter_context(sampling(window_batch))

        x = torch.empty(batch.numel(), *event, dtype=dtype, device=device)
        if x1 is None:
            ops.philox_normal_(x, seed=seed, step=0)
        elif x1.shape != batch + event:
            raise ValueError(
                f"x1 must have shape {(*batch, *event)}, the batch shape and the event shape, got "
                f"{tuple(x1.shape)}"
            )
        else:
            x.copy_(x1.reshape(x.shape))
        if x.numel() == 0:
            return x.reshape(batch + event)

        if c is not None and (c.dtype != dtype or c.device != device):
            raise TypeError(
                f"c must be {dtype} on {device}, as the state is, got {c.dtype} on {c.device}"
            )

        eps = _estimator(sde, c, x)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        mu, sigma = (level.tolist() for level in coefficients(sde, times))
        weights = adams_bashforth(sde, times, order).tolist() if order > 1 else None
        clock = times.to(device, dtype)
        watch = _Watch(x)
        history: list[Tensor] = []

        for n in tqdm(range(1, steps + 1), disable=not progress, ncols=88):
            estimate = eps(x, clock[n - 1])
            if weights is not None:
                history = [estimate, *history[: order - 1]]
                estimate = sum(w * e for w, e in zip(weights[n - 1], history, strict=False))

            r = mu[n] / mu[n - 1]
            ops.predictor_(x, estimate, r, sigma[n] - r * sigma[n - 1])

            for i in range(corrections):
                ops.langevin_(x, eps(x, clock[n]), sigma[n], tau, seed=seed, step=n, correction=i)

            watch(x, n, float(times[n]), sigma[n], last=n == steps)
            if callback is not None:
                callback(n, float(times[n]), x.reshape(batch + event))

    return x.reshape(batch + event)


def _is_integer(value: Any, least: int, most: float = math.inf) -> bool:
    """Says whether an argument is an integer within bounds."""
    try:
        return least <= operator.index(value) <= most
    except TypeError:
        return False


def _check(steps: int, corrections: int, tau: float, order: int, window_batch: int | None) -> None:
    """Checks the numbers among the arguments."""
    if not _is_integer(steps, 1):
        raise ValueError(f"steps must be an integer, at least 1, got {steps}")
    if not _is_integer(corrections, 0):
        raise ValueError(f"corrections must be an integer, at least 0, got {corrections}")
    if not _is_integer(order, 1, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if window_batch is not None and not _is_integer(window_batch, 1):
        raise ValueError(f"window_batch must be an integer, at least 1, got {window_batch}")
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be positive, got {tau}")


def _placement(
    sde: Any, x1: Tensor | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Finds the device and the dtype of the state: those of the network."""
    if x1 is not None and not isinstance(x1, Tensor):
        raise TypeError(f"x1 must be a tensor, got {type(x1).__name__}")

    module = sde if hasattr(sde, "parameters") else sde.eps
    parameters: Iterable[Tensor] = getattr(module, "parameters", tuple)()
    network = next((p for p in parameters if p.is_floating_point()), None)
    device = getattr(sde, "device", None)

    if isinstance(device, Tensor):  # the reference package keeps a tensor under this name
        device = device.device
    if device is None and network is not None:
        device = network.device
    if device is None:
        device = x1.device if x1 is not None else "cpu"
    device = torch.device(device)

    if network is not None and network.device != device:
        raise ValueError(f"sde is on {device}, but its network is on {network.device}")
    if x1 is not None and x1.device != device:
        raise ValueError(f"x1 must be on {device}, as the noise process is, got {x1.device}")

    if dtype is None:
        known = network if network is not None else x1
        dtype = known.dtype if known is not None else torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    if network is not None and network.dtype != dtype:
        raise TypeError(
            f"dtype must be {network.dtype}, as the network's parameters are, got {dtype}: "
            f"convert the noise process, sde.to({dtype})"
        )
    if x1 is not None and x1.dtype != dtype:
        raise TypeError(f"x1 must have dtype {dtype}, as the network has, got {x1.dtype}")

    return device, dtype


def _estimator(sde: Any, c: Tensor | None, noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Wraps `sde.eps`, or its twin if that agrees on some noise, checking what it returns."""
    estimator = sde.eps
    context: tuple[Tensor | None, ...] = (c,) if c is not None or _takes_context(sde.eps) else ()

    if ops.is_native(noise):
        twin = recognise.twin(sde.eps)
        if twin is not None and recognise.agrees(sde.eps, twin, noise, *context):
            estimator = twin

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        eps: Tensor = estimator(x, t, *context)

        if eps.shape != x.shape:
            raise ValueError(
                f"sde.eps must return the shape of its input, {tuple(x.shape)}, got "
                f"{tuple(eps.shape)}"
            )
        if eps.dtype != x.dtype or eps.device != x.device:
            raise TypeError(
                f"sde.eps must return {x.dtype} on {x.device}, as its input is, got {eps.dtype} on "
                f"{eps.device}"
            )

        return eps

    return estimate


def _takes_context(eps: Any) -> bool:
    """Tells whether a third positional argument can be passed."""
    try:
        inspect.signature(getattr(eps, "forward", eps)).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        return True
    return True


class _Watch:
    """Notices the first step at which a sample is not finite, without waiting for the device."""

    def __init__(self, x: Tensor):
        self.every = 1 if x.device.type == "cpu" else CHECK_EVERY
        self.since = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.levels: list[tuple[float, float]] = []

    def __call__(self, x: Tensor, step: int, t: float, sigma: float, last: bool) -> None:
        self.levels.append((t, sigma))
        # a sum is finite only if its terms are; one that overflows is no better
        bad = ~torch.isfinite(x.flatten(1).sum(dim=1))
        self.since = torch.where(bad & (self.since == 0), step, self.since)

        if (last or step % self.every == 0) and bool(self.since.any()):
            samples = self.since.nonzero()[:, 0]
            first = int(samples[self.since[samples].argmin()])
            step = int(self.since[first])
            t, sigma = self.levels[step - 1]
            raise FloatingPointError(
                f"the state is not finite since step {step} (t = {t:.4g}, sigma = {sigma:.4g}), "
                f"first in sample {first}, by now in {len(samples)} of {len(x)} samples; more "
                "steps or corrections, a smaller tau or a larger gamma may help"
            )


@dataclass(frozen=True)
class Explanation:
    """What :func:`sample` does for each part of its work, and why.

    Arguments:
        parts: For each part its name, what serves it and why.
        evaluations: The number of score evaluations of each sample.
    """

    parts: tuple[tuple[str, str, str], ...]
    evaluations: int

    def __str__(self) -> str:
        columns = [max(map(len, column)) for column in zip(*self.parts, strict=True)]
        rows = [
            "  ".join(cell.ljust(size) for cell, size in zip(part, columns, strict=True)).rstrip()
            for part in self.parts
        ]
        return "\n".join([*rows, f"{self.evaluations} score evaluations"])


def explain(
    sde: Any,
    shape: Sequence[int] = (),
    *,
    steps: int = 64,
    corrections: int = 0,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Explanation:
    """Says what :func:`sample`, given the same arguments, chooses for each part and why.

    Raises:
        RuntimeError: backend="native" and a native operator cannot serve.
    """
    _check(steps, corrections, 1.0, 1, None)
    device, dtype = _placement(sde, None, dtype)

    state = torch.empty(0, *sde.shape, dtype=dtype, device=device)
    with ops.backend(backend):
        reason = ops.unserved(state)
    if reason is not None and backend == "native":
        raise RuntimeError(f"backend='native' cannot serve: {reason}")

    if backend == "reference":
        served, why = "reference", "as asked"
    elif reason is not None:
        served, why = "reference", reason
    else:
        served, why = "native", f"{dtype} on {device}".replace("torch.", "")

    parts = [(name, served, why) for name in ("noise", "predictor", "corrector")]
    network = sde.eps
    if served == "native":
        network = recognise.twin(network) or network
        if network is not sde.eps:
            why = f"{type(sde.eps).__name__} has its structure; used if its numbers agree"
            parts.append(("recognised", type(network).__name__, why))

    if hasattr(network, "sde") and hasattr(network, "A"):
        parts.append(("guidance", "torch", f"{type(network).__name__}, by autograd"))
        network = network.sde.eps

    if isinstance(network, MCScoreNet):
        windows = len(network.plan(sde.shape[0]))
        parts.append(("composition", served, f"{network.composition}, {windows} windows"))
        with ops.backend(backend), sampling():
            fused = network.fused(state)
        name = type(network.kernel).__name__
        if isinstance(fused, str):
            parts.append(("network", "torch", f"{name}, called: {fused}"))
        else:
            products = "bfloat16" if fused.bfloat16 else "float32"
            parts.append(("network", "native", f"{name}, fused, products in {products}"))
    else:
        parts.append(("network", "torch", f"{type(network).__name__}, called as it is"))

    return Explanation(tuple(parts), steps * (1 + corrections))
