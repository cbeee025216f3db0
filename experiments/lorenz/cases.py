"""Truths of Lorenz-63, what is observed of them, and their posteriors by a particle filter.

States of truths, references and posteriors are physical; what is observed is a function of the
standardised state, in standardised units, and so are the standard deviations of noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sda_fast import VPSDE, GaussianScore, Junction, NoisyLorenz63, load_prior, preset, sample
from sda_fast.composition import Centre, Composition
from sda_fast.evaluation import (
    Observation,
    coverage,
    crps,
    energy_distance,
    ensemble_kalman_smoother,
    log_prior,
    particle_filter,
    rmse,
    spread_skill,
    wasserstein,
)

LENGTH, GAMMA, PARTICLES, SPIN_UP = 65, 3e-2, 16384, 1024

# The ensemble Kalman smoother has so many members at least: with few it is worse, not just noisier.
SMOOTHED = 64

# A member with a standardised element beyond this is lost: one of them would be all of a mean. The
# attractor ends near 3, and members that a clip of 5 holds lie at 5.
LOST = 4.0

JUNCTION = "junction, w = 9"
PRIORS: dict[str, tuple[str, str | Composition]] = {
    "centre, k = 2": ("lorenz63", "centre"),
    "length-aware, k = 1": ("lorenz63-w9", Centre(1)),
    "length-aware, k = 2": ("lorenz63-w9", Centre(2)),
    "length-aware, k = 3": ("lorenz63-w9", Centre(3)),
    "length-aware, k = 4": ("lorenz63-w9", Centre(4)),
    JUNCTION: ("lorenz63-w9", Junction(window=9, stride=4)),
}
FILTER, SMOOTHER = "particle filter", "ensemble Kalman"

#: Ways to sample, by the name that cells have of them.
RECIPES = {name: preset(name) for name in ("fast", "accurate")}

# scores of :func:`measure` that tables of posteriors have, and their titles
METRICS = {
    "w1": "W1",
    "above": "above the floor",
    "energy": "energy",
    "log_prior": "log prior",
    "rmse": "RMSE",
    "spread_skill": "spread/RMSE",
    "coverage": "coverage",
    "lost": "lost",
}

chain = NoisyLorenz63(dt=0.025)


def first(x: Tensor) -> Tensor:
    """Observes the first coordinate a of states (*, 3)."""
    return x[..., :1]


@dataclass(frozen=True)
class Instrument:
    """What is observed of a trajectory.

    Arguments:
        every: Every how many states something is observed, the first of them included.
        std: The standard deviation of the noise.
        of: A function from standardised states (*, 3) to what is observed of them (*, m).
    """

    every: int
    std: float
    of: Callable[[Tensor], Tensor] = first

    def state(self, x: Tensor) -> Tensor:
        """Predicts what is observed of physical states (*, 3), as a filter asks. What follows the
        three coordinates is not seen."""
        return self.of(chain.preprocess(x[..., :3]))

    def trajectory(self, x: Tensor) -> Tensor:
        """Predicts what is observed of standardised trajectories (*, L, 3), as guidance asks."""
        return self.of(x[..., :: self.every, :])

    def readings(self, observation: Observation) -> Tensor:
        """Returns the observed rows (N, m) of an observation (L, m)."""
        return observation.y[:: self.every]


@dataclass(frozen=True, eq=False)
class Case:
    """A truth (L, 3), what was observed of it, and its posterior by the particle filter (N, L, 3).

    States are physical, the observation is standardised."""

    truth: Tensor
    observation: Any
    reference: Tensor


@cache
def attractor(seed: int, system: NoisyLorenz63 = chain) -> Tensor:
    """Draws states from the stationary law, one for each particle."""
    generator = Generator().manual_seed(seed)
    x = system.prior((PARTICLES,), generator=generator)
    return system.trajectory(x, SPIN_UP, last=True, generator=generator)


def simulate(seed: int, system: NoisyLorenz63 = chain) -> tuple[Tensor, Generator]:
    """Simulates a truth (L, 3), and returns the generator for what comes after it."""
    generator = Generator().manual_seed(seed)
    x = system.prior(generator=generator)
    x = system.trajectory(x, SPIN_UP, last=True, generator=generator)
    return system.trajectory(x, LENGTH, generator=generator), generator


def observe(instrument: Instrument, truth: Tensor, generator: Generator) -> Observation:
    """Observes a truth."""
    exact = instrument.state(truth)
    y = torch.full_like(exact, math.nan)
    y[:: instrument.every] = exact[:: instrument.every]
    y += instrument.std * torch.randn(y.shape, generator=generator)
    return Observation(y, instrument.state, instrument.std)


@cache
def make_case(instrument: Instrument, seed: int, members: int) -> Case:
    """Simulates and observes a truth, and draws its posterior by the particle filter."""
    truth, generator = simulate(seed)
    observation = observe(instrument, truth, generator)
    return Case(truth, observation, filtered(observation, 1, seed, members))


def filtered(
    observation: Any,
    run: int,
    seed: int,
    members: int,
    system: NoisyLorenz63 = chain,
    length: int = LENGTH,
) -> Tensor:
    """Draws physical trajectories by an independent run of the particle filter."""
    generator = Generator().manual_seed(1000 * run + seed)
    x = attractor(run, system)
    particles = particle_filter(system, observation, x, length=length, generator=generator)
    return particles.trajectories(members, generator=generator)


def load(method: str = JUNCTION, device: str = "cpu", length: int = LENGTH) -> VPSDE:
    """Loads one of :data:`PRIORS`."""
    name, composition = PRIORS[method]
    return load_prior(name, length=length, composition=composition, device=device)


def guide(case: Case, instrument: Instrument, prior: VPSDE, gamma: Any = GAMMA) -> GaussianScore:
    """Guides a prior as the paper does, by what was observed."""
    y = instrument.readings(case.observation).to(prior.device)
    return GaussianScore(y, instrument.trajectory, instrument.std, prior, gamma=gamma)


def draw(
    guided: nn.Module,
    members: int,
    *,
    seed: int,
    context: Tensor | None = None,
    system: NoisyLorenz63 = chain,
    **options: Any,
) -> Tensor:
    """Draws physical posterior trajectories (N, L, 3) of a guided prior; options are those of
    :func:`sda_fast.sample`."""
    prior = guided.sde
    sde = VPSDE(guided.to(prior.device), prior.shape).to(prior.device)
    return system.postprocess(sample(sde, (members,), context, seed=seed, **options).cpu())


def even(cell: Any) -> dict[str, Any]:
    """Returns the options of :func:`draw` of a cell of even steps, by its fields steps, C, tau."""
    return {"steps": cell.steps, "corrections": cell.C, "tau": cell.tau or 1.0}


def peer(cell: Any, observation: Observation) -> Tensor:
    """Draws physical posterior trajectories (N, L, 3) by the other method of a cell."""
    if cell.method == FILTER:
        return filtered(observation, 2, cell.truth, cell.members)
    generator = Generator().manual_seed(cell.truth)
    x = attractor(3)[: max(cell.members, SMOOTHED)]
    return ensemble_kalman_smoother(chain, observation, x, generator=generator)[: cell.members]


def inside(x: Tensor) -> Tensor:
    """Says which members (N, L, 3) did not leave the attractor, with shape (N)."""
    return (chain.preprocess(x).abs() < LOST).all(dim=2).all(dim=1)


def kept(x: Tensor) -> Tensor:
    """Returns the members (N, L, 3) that did not leave the attractor, at least two."""
    good = inside(x)
    if int(good.sum()) < 2:
        lost = 1 - float(good.double().mean())
        raise FloatingPointError(f"{lost:.0%} of the members left the attractor")
    return x[good]


def measure(x: Tensor, case: Case, system: NoisyLorenz63 = chain) -> dict[str, float]:
    """Scores physical trajectories (N, L, 3)."""
    members, x = len(x), kept(x)

    return {
        "log_prior": (LENGTH - 1) * float(log_prior(system, x.double()).mean()),
        "log_likelihood": float(total_log_likelihood(case.observation, x).mean()),
        "w1": wasserstein(x, case.reference),
        "energy": energy_distance(x, case.reference, unbiased=True),
        "rmse": rmse(x.mean(dim=0), case.truth),
        "spread_skill": spread_skill(x, case.truth),
        "crps": float(crps(x, case.truth, fair=True).mean()),
        "coverage": coverage(x, case.truth),
        "lost": 1 - len(x) / members,
    }


def above_floor(
    records: Sequence[dict[str, Any]],
    names: Sequence[str],
    floor: Callable[[dict[str, Any]], bool] = lambda record: record["method"] == FILTER,
) -> list[dict[str, Any]]:
    """Returns records with their W1 less the floor's, as "above".

    Arguments:
        records: Records of :func:`measure`.
        names: The fields in which a record and its floor agree, such as the truth.
        floor: Says whether a record is a floor, which itself gets no difference.
    """

    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[name] for name in names)

    floors = {key(record): record["w1"] for record in records if floor(record)}
    return [
        record
        if floor(record) or "error" in record
        else record | {"above": record["w1"] - floors[key(record)]}
        for record in records
    ]


def total_log_likelihood(observation: Any, x: Tensor) -> Tensor:
    """Returns log p(y | x) of trajectories (N, L, 3), with shape (N)."""
    steps: Sequence[int] = [i for i in range(LENGTH) if observation.observed(i)]
    return torch.stack([observation.log_likelihood(i, x[:, i]) for i in steps]).sum(dim=0)
