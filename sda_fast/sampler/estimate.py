"""The noise estimate of a step, in pieces where they can be combined with the step."""

__all__ = ["Estimator"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops, recognise
from .._autocast import widened
from .._kept import Parts, identical, numbers, told, version
from ..guidance import Level, Pieces, context_for, in_pieces
from ..schedule import coefficients
from ..score import MCScoreNet, look_again, others_code
from .graph import Graph, unserved
from .plan import SamplingPlan


class Estimator:
    """Evaluates `sde.eps`, or its twin, at the times of a plan.

    Arguments:
        sde: The noise process.
        plan: The plan.
        c: The context.
        noise: The initial state, with shape (B, *event).
    """

    def __init__(self, sde: Any, plan: SamplingPlan, c: Tensor | None, noise: Tensor):
        self.sde, self.c = sde, c
        self.grid = torch.tensor(plan.times, dtype=torch.float64)
        self.clock = self.grid.to(plan.device, plan.dtype)
        self.clip = plan.clip
        self.process = list(zip(plan.mu, plan.sigma, strict=True))
        self.graphs: dict[int, Graph] = {}  # by where the state lies
        self.uncaptured = unserved(plan)  # why evaluations are not captured, if they are not

        self.recognised = plan.estimator is not sde.eps
        self._choose(plan.estimator, noise)

    def _choose(self, estimator: Any, x: Tensor) -> None:
        """Evaluates `sde.eps` or its twin from now on."""
        self.estimator = estimator
        self.context = context_for(self.sde.eps, self.c)
        self.levels: list[tuple[float, float]] = []  # the signal and the noise, of the guidance
        if in_pieces(self.estimator):
            mu, sigma = coefficients(self.estimator.sde, self.grid)
            self.levels = list(zip(mu.tolist(), sigma.tolist(), strict=True))
            self.context = context_for(self.estimator.sde.eps, self.c)
        self.at_once = self.estimator.at_once(x, *self.context) if self.levels else len(x)
        self.at_once = max(self.at_once, 1)  # of the samples
        self._prepare(x)

    def _prepare(self, x: Tensor) -> None:
        """Has the network compute at once what it needs of the times alone."""
        network = self.estimator.sde.eps if self.levels else self.estimator
        if isinstance(network, MCScoreNet):
            network.prepare(x, self.clock, *self.context)

    def follow(self) -> None:
        """Remembers what the estimator is made of, for :meth:`renew`."""
        self.made_of = _MadeOf(self.sde.eps)

    def renew(self, x: Tensor) -> None:
        """Follows what a callback, which was given states, may have changed since :meth:`follow`:
        networks look at their weights again, and what is of other parts than before is chosen
        anew."""
        look_again()
        if self.made_of.of(self.sde.eps) and self.made_of.unchanged():
            self._prepare(x)
            return
        self._release("it is changed while samples are drawn")
        self._choose(self._estimator(x), x)
        self.follow()

    def _estimator(self, x: Tensor) -> Any:
        """Returns the twin of what `sde.eps` is now, if there was one and it agrees, or that."""
        twin = recognise.twin(self.sde.eps) if self.recognised else None
        context = context_for(self.sde.eps, self.c)
        if twin is not None and recognise.agrees(self.sde.eps, twin, x, *context):
            return twin
        return self.sde.eps

    def __call__(self, x: Tensor, n: int) -> Tensor | Pieces:
        """Evaluates the estimate for states (B, *event) at time n of the grid, in pieces where it
        is guided by one of this package's modules. Captured, it is in memory that the next
        evaluation overwrites."""
        graph = self.capture(x)
        if graph is not None:
            estimate = graph(n)
        else:
            levels = self.levels[n] if self.levels else ()
            estimate = self._evaluate(x, self.clock[n], levels)
        if self.clip is None:
            return estimate
        return self.clipped(self.combined(estimate, n), x, n, self.clip)

    def capture(self, x: Tensor) -> Graph | None:
        """Returns the graph of an evaluation of a state, captured once, or None, with the reason
        in `uncaptured`."""
        if self.uncaptured is None and x.data_ptr() not in self.graphs:
            levels: Sequence[tuple[float, ...]] = self.levels or [()] * len(self.clock)
            # the parts of the samples are worked on in turn, and each estimate is used at once
            beside = next(iter(self.graphs.values()), None)
            try:
                self.graphs[x.data_ptr()] = Graph(self._evaluate, x, self.clock, levels, beside)
            except RuntimeError as error:
                self._release(str(error).partition("\n")[0])
        return self.graphs.get(x.data_ptr())

    def _release(self, reason: str) -> None:
        """Captures nothing from now on."""
        self.uncaptured = self.uncaptured or reason
        self.graphs.clear()

    def _evaluate(self, x: Tensor, t: Tensor, levels: tuple[Level, ...]) -> Tensor | Pieces:
        if not levels:
            # the state is in memory that later steps write to, and another's network may keep it
            given = x if isinstance(self.estimator, recognise.OWN) else x.clone()
            with others_code(self.estimator):
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


class _MadeOf:
    """What an estimator is made of: its modules, of a guidance module also those of the process
    and the network within; what they were told; and the numbers that others' things keep."""

    def __init__(self, estimator: Any):
        sde = getattr(estimator, "sde", None)
        inner = getattr(sde, "eps", None)
        within = [each for each in (estimator, sde, inner) if isinstance(each, nn.Module)]
        self.parts = Parts(*within)
        self.things = [estimator, sde, *self.parts.modules]
        self.levels = list(sde.parameters(recurse=False)) if isinstance(sde, nn.Module) else []
        self.before, self.numbers = told(self.things), self._numbers()

    def of(self, estimator: Any) -> bool:
        """Says whether it is that of an estimator."""
        return self.things[0] is estimator

    def unchanged(self) -> bool:
        """Says whether all of it is the same now, as far as torch counts changes of parameters."""
        same = identical(told(self.things), self.before) and self.parts.unchanged()
        return same and self._numbers() == self.numbers

    def _numbers(self) -> list[object]:
        return [*numbers(self.things), *map(version, self.levels)]


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
