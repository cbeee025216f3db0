"""What a run of the sampler will do: its numbers, what serves each part of it, and why."""

__all__ = ["SamplingPlan", "is_integer", "make_plan", "make_schedule"]

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Size, Tensor

from .. import ops, recognise
from .._arguments import as_tensor
from .._calls import stands_for_call
from ..fused_unet import FusedUNet
from ..guidance import context_for, in_pieces
from ..schedule import adams_bashforth, coefficients
from ..score import MCScoreNet, fused_unet, sampling
from .memory import evaluation_bytes, windows_that_fit

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class SamplingPlan:
    r"""What :func:`sda_fast.sample` does, step by step, what serves each part and why.

    Arguments:
        batch: The batch shape.
        event: The event shape.
        device: The device of the state.
        dtype: The type of the state.
        backend: "auto", "native" or "reference".
        times: The time grid :math:`t_0 > ... > t_N`.
        mu: The levels :math:`\mu(t_n)` of the signal.
        sigma: The levels :math:`\sigma(t_n)` of the noise.
        weights: The weights of the last estimates in each predictor step, the newest one's first.
        corrections: The number of corrections after each of the N predictor steps.
        tau: The amplitude of the corrections after each of the N predictor steps.
        denoise: Whether the state at the end is denoised.
        clip: The bound of the denoised states, or None for none.
        window_batch: The number of windows, over all samples, that a composed network evaluates
            in one call, or None for all.
        estimator: What estimates the noise: `sde.eps`, or its native twin.
        parts: For each part of the work its name, what serves it and why.
    """

    batch: Size
    event: Size
    device: torch.device
    dtype: torch.dtype
    backend: str
    times: tuple[float, ...]
    mu: tuple[float, ...]
    sigma: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    corrections: tuple[int, ...]
    tau: tuple[float, ...]
    denoise: bool
    clip: float | None
    window_batch: int | None
    estimator: Any
    parts: tuple[tuple[str, str, str], ...]

    @property
    def steps(self) -> int:
        """The number N of predictor steps."""
        return len(self.times) - 1

    @property
    def order(self) -> int:
        """The number of estimates that a predictor step uses at most."""
        return max((len(row) for row in self.weights), default=1)

    @property
    def evaluations(self) -> int:
        """The number of score evaluations of each sample."""
        return self.steps + sum(self.corrections) + self.denoise

    @property
    def state_bytes(self) -> int:
        """The memory of states at most: the sample, the estimates that a multistep predictor keeps,
        and those of a step, guided ones in pieces and with what they denoise to."""
        states = self.order + (4 if in_pieces(self.estimator) else 1)
        return states * self.batch.numel() * self.event.numel() * self.dtype.itemsize

    @property
    def network_bytes(self) -> int | None:
        """The memory that an evaluation takes beside, about: the packed weights of the network,
        what it keeps for its gradient, and windows. None where that cannot be known, as of
        networks that do not run on torch's device `meta`."""
        state = torch.empty(0, *self.event, dtype=self.dtype, device=self.device)
        with ops.backend(self.backend):
            return evaluation_bytes(self.estimator, state, self.batch.numel(), self.window_batch)

    def __str__(self) -> str:
        columns = [max(map(len, column)) for column in zip(*self.parts, strict=True)]
        rows = [
            "  ".join(cell.ljust(size) for cell, size in zip(part, columns, strict=True)).rstrip()
            for part in self.parts
        ]
        network = self.network_bytes
        beside = "what the network takes" if network is None else f"about {_amount(network)}"
        memory = f"{_amount(self.state_bytes)} of states at most, {beside} beside"
        return "\n".join([*rows, f"{self.evaluations} score evaluations", memory])


def _amount(size: float) -> str:
    """Says a number of bytes."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def make_plan(
    sde: Any,
    shape: Sequence[int],
    c: Tensor | None,
    steps: int | Sequence[float] | Tensor,
    corrections: int | Sequence[int] | Callable[[float], int],
    tau: float | Sequence[float] | Callable[[float], float],
    *,
    x1: Tensor | None,
    order: int,
    window_batch: int | None,
    dtype: torch.dtype | None,
    backend: str,
    denoise: bool,
    clip: float | None,
) -> SamplingPlan:
    """Checks the arguments of :func:`sda_fast.sample`, and plans what it does.

    Raises:
        ValueError: An argument is out of its range, or of a shape that does not fit.
        TypeError: A dtype does not fit.
        RuntimeError: backend="native" and a native operator cannot serve.
    """
    lacking = [name for name in ("eps", "shape", "mu", "sigma") if not hasattr(sde, name)]
    if lacking:
        raise TypeError(
            f"sde must be a noise process, such as VPSDE(network, shape), got "
            f"{type(sde).__name__}, which has no {', '.join(lacking)}"
        )
    times, counts, amplitudes = make_schedule(steps, corrections, tau)
    if not is_integer(order, 1, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if window_batch is not None and not is_integer(window_batch, 1):
        raise ValueError(f"window_batch must be an integer, at least 1, got {window_batch}")
    if clip is not None and not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"clip must be positive, or None, got {clip}")

    batch, event = _batch(shape), Size(sde.shape)
    device, dtype = _placement(sde, x1, dtype)
    if x1 is not None and x1.shape != batch + event:
        raise ValueError(
            f"x1 must have shape {(*batch, *event)}, the batch shape and the event shape, got "
            f"{tuple(x1.shape)}"
        )
    ours = isinstance(sde.eps, recognise.OWN)  # others may take what they like
    if c is not None and ours and (c.dtype != dtype or c.device != device):
        raise TypeError(
            f"c must be {dtype} on {device}, as the state is, got {c.dtype} on {c.device}"
        )

    state = torch.empty(0, *event, dtype=dtype, device=device)
    with ops.backend(backend):
        reason = ops.unserved(state)
        if reason is not None and backend == "native":
            raise RuntimeError(f"backend='native' cannot serve: {reason}")
        served = "reference" if backend == "reference" or reason is not None else "native"
        why = "as asked" if backend == "reference" else reason
        if why is None:
            why = f"{dtype} on {device}".replace("torch.", "")

        parts = [(name, served, why) for name in ("noise", "predictor", "corrector")]
        estimator = sde.eps
        if served == "native" and (twin := recognise.twin(sde.eps)) is not None:
            agree = _agree(sde.eps, twin, state, batch.numel(), c)
            estimator = twin if agree else sde.eps
            parts.append(_recognised(sde.eps, twin, agree))
        more, window_batch = _network_parts(estimator, state, batch.numel(), window_batch, served)

    mu, sigma = (tuple(level.tolist()) for level in coefficients(sde, times))
    if order == 1:
        weights = ((1.0,),) * len(counts)
    else:
        rows = adams_bashforth(sde, times, order).tolist()
        weights = tuple(tuple(row[: n + 1]) for n, row in enumerate(rows))

    return SamplingPlan(
        batch=batch,
        event=event,
        device=device,
        dtype=dtype,
        backend=backend,
        times=tuple(times.tolist()),
        mu=mu,
        sigma=sigma,
        weights=weights,
        corrections=counts,
        tau=amplitudes,
        denoise=bool(denoise),
        clip=None if clip is None else float(clip),
        window_batch=window_batch,
        estimator=estimator,
        parts=(*parts, *more),
    )


def make_schedule(
    steps: int | Sequence[float] | Tensor,
    corrections: int | Sequence[int] | Callable[[float], int],
    tau: float | Sequence[float] | Callable[[float], float],
) -> tuple[Tensor, tuple[int, ...], tuple[float, ...]]:
    """Checks arguments of :func:`sda_fast.sample`, and returns the time grid, with shape (N + 1)
    in float64, and of each of the N steps the number of corrections and their amplitude.

    Raises:
        ValueError: An argument is out of its range.
    """
    times = _grid(steps)
    now = times[1:].tolist()
    counts = _schedule("corrections", corrections, now, _count)
    return times, counts, _schedule("tau", tau, now, _amplitude)


def _agree(eps: Any, twin: Any, state: Tensor, samples: int, c: Tensor | None) -> bool:
    """Says whether an estimator and its twin agree on noise, of a few samples if there are several:
    they may not be independent of each other."""
    x = state.new_empty(min(max(samples, 1), recognise.SAMPLES), *state.shape[1:])
    with torch.inference_mode(False), torch.no_grad():
        ops.philox_normal_(x, seed=0, step=0)
        return recognise.agrees(eps, twin, x, *context_for(eps, c))


def _recognised(eps: Any, twin: Any, agree: bool) -> tuple[str, str, str]:
    """Says what was recognised, of our guidance the network that it guides."""
    if type(eps) is type(twin):
        eps, twin = eps.sde.eps, twin.sde.eps
    name, ours = type(eps).__name__, type(twin).__name__
    if agree:
        return "recognised", ours, f"{name} has its structure, and their numbers agree"
    return "recognised", "nothing", f"{name} has the structure of {ours}, but other numbers"


def _network_parts(
    estimator: Any, state: Tensor, samples: int, window_batch: int | None, served: str
) -> tuple[list[tuple[str, str, str]], int | None]:
    """Says what serves guidance, composition and network, and how many windows at once."""
    parts = []
    network = estimator
    guided = in_pieces(estimator)

    if guided:
        native = stands_for_call(getattr(estimator, "A", None), "vjp")
        by = "its operator's own product" if native else "its operator by autograd"
        parts.append(("guidance", served, f"{type(estimator).__name__}, {by}"))
        network = estimator.sde.eps
    elif hasattr(network, "sde") and hasattr(network, "A"):
        parts.append(("guidance", "torch", f"{type(network).__name__}, called as it is"))
        network = network.sde.eps

    if not isinstance(network, MCScoreNet):
        by, how = _unet_part(network, state)
        parts.append(("network", by, f"{type(network).__name__}, {how or 'called as it is'}"))
        return parts, window_batch

    windows = len(network.plan(state.shape[1]))
    parts.append(("composition", served, f"{network.composition}, {windows} windows"))
    with torch.no_grad(), sampling():
        fused = network.fused(state)
    name = type(network.kernel).__name__
    if not isinstance(fused, str):
        products = "bfloat16" if fused.bfloat16 else "TF32" if fused.tf32 else "float32"
        parts.append(("network", "native", f"{name}, fused, products in {products}"))
        return parts, window_batch

    if window_batch is None:
        gradient = guided and not estimator.detach
        fit = windows_that_fit(network, state, gradient=gradient)
        if fit is not None and fit < windows * samples:
            window_batch = fit
    many = "all" if window_batch is None else network.windows_at_once(window_batch)
    by, how = _unet_part(network.kernel, state)
    parts.append(("network", by, f"{name}, {many} windows at once: {how or fused}"))
    return parts, window_batch


def _unet_part(network: Any, state: Tensor) -> tuple[str, str | None]:
    """Says what serves the U-Net of a network, and how; nothing of how if there is none."""
    fused = fused_unet(network, state)
    return ("native", str(fused)) if isinstance(fused, FusedUNet) else ("torch", fused)


def is_integer(value: Any, least: int, most: float = math.inf) -> bool:
    """Says whether an argument is an integer within bounds."""
    try:
        return least <= operator.index(value) <= most
    except TypeError:
        return False


def _batch(shape: Sequence[int]) -> Size:
    """Checks the batch shape."""
    try:
        batch = Size(shape)
    except TypeError:
        raise TypeError(f"shape must be the batch shape, such as (16,), got {shape!r}") from None
    if any(n < 0 for n in batch):
        raise ValueError(f"shape must have sizes of at least 0, got {tuple(batch)}")
    return batch


def _grid(steps: int | Sequence[float] | Tensor) -> Tensor:
    """Makes the time grid, in float64."""
    if is_integer(steps, 1):
        return torch.linspace(1, 0, operator.index(steps) + 1, dtype=torch.float64)  # type: ignore[arg-type]
    if not isinstance(steps, Tensor | np.ndarray | Sequence) or isinstance(steps, str):
        raise ValueError(f"steps must be an integer, at least 1, got {steps}")

    times = as_tensor("steps", steps, dtype=torch.float64, device="cpu")
    descends = times.ndim == 1 and len(times) > 1 and bool((times.diff() < 0).all())
    if not (descends and float(times[0]) <= 1 and float(times[-1]) >= 0):
        raise ValueError(
            "steps must be a number of steps or a grid of at least two times that descend within "
            f"[0, 1], got {steps}"
        )
    return times


def _schedule(
    name: str, value: Any, times: list[float], check: Callable[[str, Any], Number]
) -> tuple[Number, ...]:
    """Makes a schedule of one number, a sequence of one a step, or a function of time."""
    if callable(value):
        return tuple(check(f"{name}({t:.4g})", value(t)) for t in times)
    if isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0:
        if len(value) != len(times):
            raise ValueError(
                f"{name} must be one number, {len(times)}, one for each step, or a function of "
                f"the time, got {len(value)}"
            )
        return tuple(check(f"{name}[{n}]", v) for n, v in enumerate(value))
    return (check(name, value),) * len(times)


def _count(name: str, value: Any) -> int:
    if not is_integer(value, 0):
        raise ValueError(f"{name} must be an integer, at least 0, got {value}")
    return operator.index(value)


def _amplitude(name: str, value: Any) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)


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
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())

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
