"""The noise estimate of a step, in pieces where they can be combined with the step."""

__all__ = ["Estimator"]

from collections.abc import Sequence
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops, recognise
from .._autocast import widened
from .._kept import Parts
from ..guidance import Level, Pieces, context_for, in_pieces
from ..schedule import coefficients
from .graph import Graph, unserved
from .plan import SamplingPlan


class Estimator:
    """Evaluates `sde.eps`, or its twin if that agrees on some noise, at the times of a plan.

    Arguments:
        sde: The noise process.
        plan: The plan.
        c: The context.
        noise: The initial state, with shape (B, *event).
    """

    def __init__(self, sde: Any, plan: SamplingPlan, c: Tensor | None, noise: Tensor):
        self.estimator = sde.eps
        self.context = context_for(sde.eps, c)

        twin = plan.estimator if plan.estimator is not sde.eps else None
        # of a guidance twin the module, what that told, and the context to call it with
        self.original: tuple[Any, list[Any], tuple[Tensor | None, ...]] | None = None
        if twin is not None and recognise.agrees(sde.eps, twin, noise, *self.context):
            self.estimator = twin
            if hasattr(sde.eps, "sde"):
                self.original = sde.eps, recognise.told(sde.eps), self.context

        grid = torch.tensor(plan.times, dtype=torch.float64)
        self.clock = grid.to(plan.device, plan.dtype)
        self.at_once = max(len(noise), 1)
        self.clip = plan.clip
        self.process = list(zip(plan.mu, plan.sigma, strict=True))
        self.levels: list[tuple[float, float]] = []  # the signal and the noise, of the guidance
        self.graphs: dict[int, Graph] = {}  # by where the state lies
        self.captured: Parts | None = None  # what they read
        self.uncaptured = unserved(plan)  # why evaluations are not captured, if they are not
        if in_pieces(self.estimator):
            mu, sigma = coefficients(self.estimator.sde, grid)
            self.levels = list(zip(mu.tolist(), sigma.tolist(), strict=True))
            self.context = context_for(self.estimator.sde.eps, c)
            self.at_once = self.estimator.at_once(noise, *self.context)

    def __call__(self, x: Tensor, n: int) -> Tensor | Pieces:
        """Evaluates the estimate for states (B, *event) at time n of the grid, in pieces where it
        is guided by one of this package's modules. Captured, it is in memory that the next
        evaluation overwrites."""
        self._renew()
        graph = self.capture(x)
        if graph is not None:
            estimate = graph(n)
        else:
            levels = self.levels[n] if self.levels else ()
            estimate = self._evaluate(x, self.clock[n], levels)
        if self.clip is None:
            return estimate
        return self.clipped(self.combined(estimate, n), x, n, self.clip)

    def _renew(self) -> None:
        """Leaves graphs where a callback has changed what they were captured of, and makes a
        guidance module's twin anew where it has changed the module."""
        if self.captured is not None and not self.captured.unchanged():
            self._release("it is changed while samples are drawn")
        if self.original is None:
            return
        score, before, context = self.original
        now = recognise.told(score)
        if not any(map(is_not, now, before)):
            return
        self.graphs.clear()
        twin = recognise.twin(score)
        if twin is not None:
            self.estimator, self.original = twin, (score, now, context)
        else:  # of what it became
            self.estimator, self.context, self.levels, self.original = score, context, [], None

    def capture(self, x: Tensor) -> Graph | None:
        """Returns the graph of an evaluation of a state, captured once, or None, with the reason
        in `uncaptured`."""
        if self.uncaptured is None and x.data_ptr() not in self.graphs:
            levels: Sequence[tuple[float, ...]] = self.levels or [()] * len(self.clock)
            try:
                self.graphs[x.data_ptr()] = Graph(self._evaluate, x, self.clock, levels)
                self.captured = _parts(self.estimator)
            except RuntimeError as error:
                self._release(str(error).partition("\n")[0])
        return self.graphs.get(x.data_ptr())

    def _release(self, reason: str) -> None:
        """Captures nothing from now on."""
        self.uncaptured, self.captured = reason, None
        self.graphs.clear()

    def _evaluate(self, x: Tensor, t: Tensor, levels: tuple[Level, ...]) -> Tensor | Pieces:
        if not levels:
            # the state is in memory that later steps write to, and another's network may keep it
            given = x if isinstance(self.estimator, recognise.OWN) else x.clone()
            eps = widened(self.estimator(given, t, *self.context), x)
            _check("sde.eps", eps, x)
            return eps

        pieces: Pieces = self.estimator.pieces(x, t, *levels, *self.context)
        _check("the eps of the prior", pieces.eps, x)
        _check("A's vector-Jacobian product", pieces.direct, x)
        return pieces

    def clipped(self, eps: Tensor, x: Tensor, n: int, clip: float) -> Tensor:
        """Bounds what an estimate at time n of the grid denoises to."""
        mu, sigma = self.process[n]
        denoised = ops.denoise(x, eps, mu, sigma)
        bound = denoised.clamp(-clip, clip)
        # elsewhere the estimate is kept as it is, to the bit
        return torch.where(bound == denoised, eps, (x - mu * bound) / sigma)

    def combined(self, estimate: Tensor | Pieces, n: int) -> Tensor:
        """Combines the pieces of an estimate at time n of the grid."""
        if isinstance(estimate, Tensor):
            return estimate
        return ops.guide(*estimate, *self.levels[n])


def _parts(estimator: Any) -> Parts:
    """Returns what an estimator is made of: of a guidance module its arguments too, and the network
    within."""
    modules, attributes = [estimator], []
    if hasattr(estimator, "sde"):
        modules.append(getattr(estimator.sde, "eps", None))
        attributes = [getattr(thing, "__dict__", {}) for thing in (estimator, estimator.sde)]
    return Parts(*(m for m in modules if isinstance(m, nn.Module)), attributes=tuple(attributes))


def _check(name: str, eps: Tensor, x: Tensor) -> None:
    """Checks what was returned for a state."""
    if not isinstance(eps, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(eps).__name__}")
    if eps.shape != x.shape:
        raise ValueError(
            f"{name} must return the shape of its input, {tuple(x.shape)}, got {tuple(eps.shape)}"
        )
    if eps.dtype != x.dtype or eps.device != x.device:
        raise TypeError(
            f"{name} must return {x.dtype} on {x.device}, as its input is, got {eps.dtype} on "
            f"{eps.device}"
        )
