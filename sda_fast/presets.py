r"""Recipes for sampling: composition, time grid, corrections and their amplitude, together.

The published recipe spends its evaluations evenly. What an evaluation buys is uneven: near
:math:`t = 1` next to nothing is decided, corrections pay where the windows have to agree with each
other, and near :math:`t = 0` a correction of large amplitude leaves noise of its own. So

.. math:: t_n = t_N + (t_0 - t_N) (1 - n / N)^2, \qquad t_0 = 0.9, \; t_N = 0.007

with corrections below :math:`t = 0.7` only, smaller ones below 0.02 and none at the end, where the
state is denoised instead. All estimates are clipped. `docs/front.md` has the measurements.

Which last time :math:`t_N` is best depends on the network: denoising takes away the share
:math:`\sigma(t_N)^2 / (\sigma(t_N)^2 + s^2)` of the variance of transition noise with deviation s,
and what the network errs at :math:`t_N` puts some back. One that errs less wants a smaller one.
"""

__all__ = ["PRESETS", "Recipe", "preset", "suggest"]

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .composition import Centre, Composition, Junction, Plan
from .sampler.plan import is_integer, make_schedule
from .score import MCScoreNet

# The first and the last time, where corrections begin, where they become smaller, and how much.
FIRST, LAST, CORRECTED, SMALL, SHRINK = 0.9, 0.007, 0.7, 0.02, 0.25
CORRECTIONS, CLIP = 3, 5.0

# Up to so many evaluations tau is 1, beyond it falls in proportion: what corrections can agree upon
# they have agreed upon by then, and their bias grows with tau.
FEW = 128

LEAST = 8  # score evaluations, below which there is no schedule

# What evaluations bought on Lorenz-63: W1 to a particle filter's posterior over that of another run
# of it, by lorenz63-w13 with its own end of the grid, the mean of low- and high-frequency
# observations (docs/front.md).
MEASURED = {64: 1.2, 126: 1.1, 498: 1.2}


@dataclass(frozen=True)
class Recipe:
    """How to sample: arguments of :func:`sda_fast.sample`, and a rule of composition.

    Arguments:
        name: What it is called.
        composition: The rule of composition, for :func:`sda_fast.load_prior` or the attribute of
            the network; None leaves the prior's own.
        steps: The time grid, or a number of steps.
        corrections: The number of corrections after each step.
        tau: Their amplitude after each step.
        denoise: Whether the last state is denoised.
        clip: The bound of denoised states, of standardised priors.
        why: What led to it, a line each.
    """

    name: str
    composition: str | Composition | Plan | None
    steps: int | tuple[float, ...]
    corrections: int | tuple[int, ...]
    tau: float | tuple[float, ...]
    denoise: bool = False
    clip: float | None = None
    why: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of :func:`sda_fast.sample`."""
        names = ("steps", "corrections", "tau", "denoise", "clip")
        return {name: getattr(self, name) for name in names}

    @property
    def evaluations(self) -> int:
        """The number of score evaluations of a sample."""
        steps = self.steps if isinstance(self.steps, int) else len(self.steps) - 1
        C = self.corrections
        return steps + (steps * C if isinstance(C, int) else sum(C)) + self.denoise

    def __str__(self) -> str:
        steps = self.steps if isinstance(self.steps, int) else len(self.steps) - 1
        lines = [
            f"{self.name}: {self.evaluations} score evaluations, {steps} steps",
            f"composition {self.composition if self.composition is not None else 'as it is'}",
            *self.why,
        ]
        return "\n".join(lines)


def scheduled(
    name: str,
    evaluations: int,
    composition: str | Composition | Plan | None = "junction",
    *,
    corrections: int = CORRECTIONS,
    tau: float | None = None,
    last: float = LAST,
    clip: float | None = CLIP,
    why: Sequence[str] = (),
) -> Recipe:
    """Returns the recipe of this module with as many steps as a number of evaluations allows,
    and by default corrections of an amplitude that falls with it.

    Raises:
        ValueError: The number of evaluations is too small, or the last time out of its range.
    """
    if not 0 <= last < CORRECTED:
        raise ValueError(f"last must be at least 0 and below {CORRECTED}, got {last}")
    if not is_integer(evaluations, LEAST):
        raise ValueError(
            f"the budget must be at least {LEAST} score evaluations, got {evaluations}"
        )

    large = min(1.0, FEW / evaluations) if tau is None else tau

    def recipe(N: int) -> Recipe:
        times = tuple(last + (FIRST - last) * (1 - n / N) ** 2 for n in range(N + 1))
        counts = [corrections if t < CORRECTED else 0 for t in times[1:]]
        counts[-1] = 0
        amplitudes = tuple(large if t > SMALL else SHRINK * large for t in times[1:])
        return Recipe(name, composition, times, tuple(counts), amplitudes, True, clip, tuple(why))

    # as many steps as fit: evaluations grow in number with steps, save that a step more
    # may move another one across a threshold, so the search begins a few above the estimate
    share = math.sqrt((CORRECTED - last) / (FIRST - last))
    most = int((evaluations + corrections) / (1 + share * corrections)) + 2
    return next(r for r in map(recipe, range(most, 0, -1)) if r.evaluations <= evaluations)


BUDGETS = {"draft": 64, "fast": 128, "accurate": 500}
PRESETS: dict[str, Recipe] = {
    "published": Recipe("published", "centre", 256, 16, 0.25),
    **{name: scheduled(name, budget) for name, budget in BUDGETS.items()},
}


def preset(name: str, *, last: float | None = None) -> Recipe:
    """Returns a recipe by its name, one of :data:`PRESETS`.

    "published" is that of Rozet & Louppe (2023), of 4352 evaluations; the others are of this
    package, and need a length-aware prior and standardised states.

    Arguments:
        name: The name.
        last: The time at which the grid ends and the state is denoised, by default 0.007;
            lorenz63-w13, whose network errs less there, is best with 0.003.

    Raises:
        ValueError: There is none of this name, or "published" is to end early.
    """
    if name not in PRESETS:
        raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
    if last is None:
        return PRESETS[name]
    if name not in BUDGETS:
        raise ValueError(f"last is of {', '.join(BUDGETS)}, {name!r} ends at 0")
    return scheduled(name, BUDGETS[name], last=last)


def suggest(
    prior: Any,
    budget: int | None = None,
    *,
    seconds: float | None = None,
    shape: Sequence[int] = (),
    last: float = LAST,
    **overrides: Any,
) -> Recipe:
    """Suggests a recipe for a prior, or for a posterior, whose evaluations cost more.

    Arguments:
        prior: A noise process, by a network or by a guidance module.
        budget: The number of score evaluations, at least 8. By default that of "fast".
        seconds: In place of it, how long to sample: two evaluations are timed, and the faster
            of them taken for all.
        shape: The batch shape, on which the time of an evaluation depends.
        last: The time at which the grid ends, see :func:`preset`.
        overrides: Fields of the recipe to have otherwise, and `corrections` (a number), `tau` (a
            number), `composition` or `clip` to be planned with.

    Returns:
        The recipe. Printed, it explains itself, and says what was measured of such recipes. Its
        composition is for `prior`'s network, which has learnt the lengths of its windows; where
        there is none, or the network is none that composes windows, it is None.

    Raises:
        ValueError: Both a budget and a time are given, or too little of one, or `last` or what
            overrides the steps, `corrections` or `tau` is out of its range.
        TypeError: An override is no field of a recipe.
    """
    if budget is not None and seconds is not None:
        raise ValueError("budget or seconds must be given, not both")
    unknown = set(overrides) - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        raise TypeError(f"a recipe has no {', '.join(sorted(unknown))}")

    planned = {
        name: overrides.pop(name)
        for name, may_be_none in (("corrections", False), ("tau", True), ("clip", True))
        if isinstance(overrides.get(name), int | float)
        or (may_be_none and overrides.get(name, 0) is None)
    }
    network = _network(prior)
    composition, reason = _composition(network, prior.shape[0])
    composition = overrides.pop("composition", composition)
    why = [reason]

    if seconds is not None:
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, got {seconds}")
        each = _pilot(prior, network, composition, shape)
        budget = max(int(seconds / each), LEAST)
        why.append(
            f"an evaluation takes {1e3 * each:.3g} ms, {seconds:g} s allow {int(seconds / each)}"
        )
        if each * LEAST > seconds:
            why.append(f"that is too few: {LEAST} are the least")
    elif budget is None:
        budget = PRESETS["fast"].evaluations
    bought = ", ".join(f"{ratio} with {count}" for count, ratio in MEASURED.items())
    why.append(f"on Lorenz-63, by lorenz63-w13, W1 was this many times an exact method's: {bought}")

    recipe = scheduled("suggested", budget, composition, last=last, why=why, **planned)
    recipe = dataclasses.replace(recipe, **overrides)
    make_schedule(recipe.steps, recipe.corrections, recipe.tau)  # fails here rather than in a run
    return recipe


def _network(prior: Any) -> MCScoreNet | None:
    """Finds the network that composes windows, behind a guidance module or not."""
    eps = prior.eps
    while hasattr(eps, "sde"):
        eps = eps.sde.eps
    return eps if isinstance(eps, MCScoreNet) else None


def _composition(network: MCScoreNet | None, length: int) -> tuple[Composition | None, str]:
    """Chooses a rule of composition for trajectories of `length` states, and says why."""
    if network is None:
        return None, "the network scores whole trajectories"
    if not network.length_aware:
        return Centre(network.order), "the network scores windows of one length"

    learnt = range(1, network.window + 1) if network.lengths is None else network.lengths
    strides = sorted(range(1, network.window), key=lambda stride: abs(stride - network.order))
    for stride in strides:
        rule = Junction(network.window, stride)
        if {*rule.plan(length).lengths} <= {*learnt}:
            apart = "half a window apart"
            if stride != network.order:
                apart = f"{stride} states apart, as the lengths that it has learnt allow"
            return rule, f"the network is length-aware: junction, {apart}"
    if network.window in learnt and length >= network.window:
        return Centre(network.order), "the network has learnt no lengths for junctions: centre"
    return None, f"the network has learnt windows of {list(learnt)} states, which no rule composes"


def _pilot(
    prior: Any,
    network: MCScoreNet | None,
    composition: str | Composition | Plan | None,
    shape: Sequence[int],
) -> float:
    """Returns the seconds of one evaluation."""
    parameter = next(iter(prior.eps.parameters()), torch.empty(()))
    batch = torch.Size(shape).numel()
    x = torch.zeros(batch, *prior.shape, dtype=parameter.dtype, device=parameter.device)
    t = torch.tensor(0.5, dtype=x.dtype, device=x.device)
    before = None if network is None else network.composition
    times = []

    try:
        if network is not None and composition is not None:
            network.composition = composition
        for _ in range(2):
            began = time.perf_counter()
            with torch.no_grad():
                prior.eps(x, t).sum().item()  # waits for an accelerator
            times.append(time.perf_counter() - began)
    finally:
        if network is not None and before is not None:
            network.composition = before

    return min(times)
