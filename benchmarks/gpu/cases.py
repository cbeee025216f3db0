"""Every operator with random arguments: what is checked, and what is timed."""

__all__ = ["DTYPES", "FLOW", "SIZES", "TINY", "Case", "operator_cases"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sda_fast import Centre, Junction, ops
from sda_fast.observation import BlockMean, Interpolate, ObservationOperator, Subsample, Vorticity

Tensors = tuple[Tensor, ...]

# Trajectories (B, L, C): a sample, an ensemble, and one that fills a large GPU.
SIZES = {"small": (1, 65, 3), "medium": (128, 65, 3), "large": (512, 1024, 64)}
TINY = {"odd": (3, 33, 5), "one": (1, 65, 3)}
DTYPES = (torch.float32, torch.bfloat16)
FLOW = (9, 2, 64, 64)
STREAM: dict[str, Any] = {"seed": 1, "step": 2}
SILU = 3  # the operators' number of it


@dataclass(frozen=True)
class Case:
    """An operator with arguments to draw.

    Arguments:
        name: The operator, and what is particular of its arguments.
        draw: Draws its tensors.
        run: Calls it with them, and returns what it wrote.
        reads: The number of elements it reads at least, where that is not all of them.
        eager: What one would write instead, with torch's own random numbers. By default the
            reference.
    """

    name: str
    draw: Callable[[], Tensors]
    run: Callable[..., Tensor | Tensors]
    reads: Callable[..., int] | None = None
    eager: Callable[..., Tensor | Tensors] | None = None

    def results(self, arguments: Sequence[Tensor]) -> Tensors:
        """Returns what the operator writes, the arguments untouched."""
        out = self.run(*(x.clone() for x in arguments))
        return out if isinstance(out, tuple) else (out,)

    def bytes(self, arguments: Sequence[Tensor]) -> int:
        """Returns the least traffic: what must be read, and what is written."""
        out = self.results(arguments)
        read = sum(x.numel() for x in arguments)
        if self.reads is not None:
            read = self.reads(*arguments)
        return read * arguments[0].element_size() + sum(x.numel() * x.element_size() for x in out)


def operator_cases(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str, flow: tuple[int, ...] = FLOW
) -> Iterator[Case]:
    """Lists the operators' cases for trajectories (B, L, C), and for a few of flow states."""

    def random(*size: int) -> Tensor:
        return torch.randn(*size, device=device).to(dtype)

    def states(count: int) -> Callable[[], Tensors]:
        return lambda: tuple(random(*shape) for _ in range(count))

    batch, length, channels = shape
    for rule in (Centre(2), Junction(9, 4)):
        plan = rule.plan(length).to(torch.device(device))
        yield from _window_cases(type(rule).__name__.lower(), plan, shape, random)

    yield Case("predictor", states(2), lambda x, e: ops.predictor(x, e, 1.01, -0.02))
    yield Case("denoise", states(2), lambda x, e: ops.denoise(x, e, 0.8, 0.6))
    yield Case(
        "multistep", states(4), lambda x, *e: ops.multistep(x, list(e), 1.01, [-0.03, 0.02, -0.01])
    )
    yield Case("guide", states(3), lambda e, g, Jg: ops.guide(e, g, Jg, 0.8, 0.6))

    def guide_predictor(x: Tensor, e: Tensor, g: Tensor, Jg: Tensor, past: Tensor) -> Tensors:
        ops.guide_predictor_(x, e, g, Jg, 0.8, 0.01, 1.0, -0.02, [past], [0.01])
        return x, e

    yield Case("guide_predictor_", states(5), guide_predictor)

    def langevin_eager(x: Tensor, e: Tensor) -> Tensor:
        delta = 0.25 / e.square().mean(dim=(1, 2), keepdim=True)
        return x - 0.5 * (delta * e + torch.sqrt(2 * delta) * torch.randn_like(x))

    yield Case(
        "langevin",
        states(2),
        lambda x, e: ops.langevin(x, e, 0.5, 0.25, **STREAM),
        eager=langevin_eager,
    )

    def guide_langevin(x: Tensor, e: Tensor, g: Tensor, Jg: Tensor) -> Tensors:
        ops.guide_langevin_(x, e, g, Jg, 0.8, 0.01, 0.25, **STREAM)
        return x, e

    def guide_langevin_eager(x: Tensor, e: Tensor, g: Tensor, Jg: Tensor) -> Tensors:
        e.copy_(e - 0.01 / 0.8 * (g - 0.01 * Jg))
        x.copy_(langevin_eager(x, e))
        return x, e

    yield Case("guide_langevin_", states(4), guide_langevin, eager=guide_langevin_eager)

    def noise(x: Tensor) -> Tensor:
        ops.philox_normal_(x, **STREAM)
        return x

    yield Case("philox_normal_", states(1), noise, reads=lambda x: 0, eager=lambda x: x.normal_())

    # drawn on the CPU, as the points below are: the same numbers whatever the device
    std, gamma = torch.rand(length, channels) + 0.1, torch.tensor(1e-2)
    std, gamma = std.to(device, dtype), gamma.to(device, dtype)
    yield Case(
        "residual",
        lambda: (random(length, channels), random(*shape)),
        lambda y, prediction: ops.residual(y, prediction, std, gamma, 0.5),
    )

    yield from _observation_cases(max(batch // 8, 1), flow, random, device)
    yield from _field_cases((max(batch // 8, 1), 32, *flow[-2:]), random)


def _window_cases(
    rule: str, plan: Any, shape: tuple[int, int, int], random: Callable[..., Tensor]
) -> Iterator[Case]:
    batch, length, channels = shape
    start, mask, weight = plan.start, plan.mask, plan.weight

    def windows() -> Tensor:
        return random(batch, len(plan), plan.window * channels)

    yield Case(f"gather {rule}", lambda: (random(*shape),), lambda x: ops.gather(x, start, mask))
    # of the windows, the rows that enter are read
    rows = batch * channels * int((weight != 0).sum())
    yield Case(
        f"compose {rule}",
        lambda: (windows(),),
        lambda w: ops.compose(w, start, weight, length),
        reads=lambda w: rows,
    )
    yield Case(
        f"compose_denoise {rule}",
        lambda: (windows(), random(*shape)),
        lambda w, x: tuple(ops.compose_denoise(w, start, weight, x, 0.8, 0.6)),
        reads=lambda w, x: rows + x.numel(),
    )


def _observation_cases(
    batch: int, flow: tuple[int, ...], random: Callable[..., Tensor], device: str
) -> Iterator[Case]:
    """The observation of flow states (L, 2, H, W), and what is observed taken back to a state."""
    points = torch.rand(500, 2) * (torch.tensor(flow[-2:]) - 1)
    operators: dict[str, ObservationOperator] = {
        "subsample": Subsample(flow, slice(None, None, 2), slice(None), slice(None, None, 4)),
        "block_mean": BlockMean(flow, (4, 4)),
        "sparse_map of points": Interpolate(flow, points),
        "sparse_map of vorticity": Vorticity(flow),
    }

    for name, A in operators.items():
        A = A.to(device)

        def draw(A: ObservationOperator = A) -> Tensors:
            return (random(batch, *A.event),)

        def draw_adjoint(A: ObservationOperator = A) -> Tensors:
            return random(batch, *A.shape), random(batch, *A.event)

        few = (lambda x, A=A: batch * A.shape.numel()) if name == "subsample" else None
        yield Case(name, draw, lambda x, A=A: A(x), reads=few)
        yield Case(
            f"{name}, adjoint",
            draw_adjoint,
            lambda y, x, A=A: A.vjp(x, y),
            reads=lambda y, x: y.numel(),
        )


def _field_cases(shape: tuple[int, ...], random: Callable[..., Tensor]) -> Iterator[Case]:
    """What a U-Net does to fields (B, C, H, W) between convolutions, channels last."""
    batch, channels, *cells = shape
    pad = (1, 1)

    def fields() -> Tensor:
        return random(*shape).contiguous(memory_format=torch.channels_last)

    def wide(*size: int) -> Tensor:
        x = random(*size)
        return x if x.dtype == torch.float64 else x.float()

    yield Case(
        "norm_pad",
        lambda: (fields(), wide(1, channels)),
        lambda x, shift: tuple(ops.norm_pad(x, shift, pad)),
    )
    yield Case(
        "norm_pad_vjp",
        lambda: (fields(), fields(), wide(batch, *cells), fields()),
        lambda g, n, scale, residual: ops.norm_pad_vjp(g, n, scale, residual, pad),
    )
    yield Case("activation_pad", lambda: (fields(),), lambda x: ops.activation_pad(x, SILU, pad))
    yield Case(
        "activation_pad_vjp",
        lambda: (fields(), fields()),
        lambda g, x: ops.activation_pad_vjp(g, x, SILU, pad),
    )
