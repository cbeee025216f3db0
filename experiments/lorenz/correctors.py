r"""Other kinds of corrector, on Lorenz-63: what of closed forms holds for a network.

    python -m experiments.lorenz.correctors --quick --out runs/lorenz

The correctors are those of :mod:`experiments.schedules`, settings and scores those of
:mod:`experiments.front`, the schedule that of a preset with every tau times a factor. The sampler
is written out here, in eager PyTorch with torch's own random numbers, so that its correctors can
differ; all take as many evaluations. The truths are those that the presets were chosen by.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from experiments import front
from sda_fast import GaussianScore, preset
from sda_fast.observation import Subsample
from sda_fast.sampler.plan import make_schedule
from sda_fast.schedule import coefficients

from .. import study
from ..study import Record
from . import cases
from .cases import FILTER, LENGTH, Instrument
from .guidance import spectrum
from .posterior import SETTINGS

PLAIN, AVERAGED, UNDERDAMPED = "plain", "averaged noise", "underdamped"
PRECONDITIONED = "preconditioned by the posterior"


@dataclass(frozen=True)
class Profile:
    """What is run: every corrector by every factor and truth. A corrector is a name and, of the
    underdamped ones, the share c of the momentum that is kept."""

    truths: int
    members: int
    presets: Sequence[str]
    factors: Sequence[float]
    correctors: Sequence[tuple[str, float]] = (
        (PLAIN, 0.0),
        (AVERAGED, 0.0),
        (UNDERDAMPED, 0.5),
        (UNDERDAMPED, 0.8),
        (PRECONDITIONED, 0.0),
    )


QUICK = Profile(truths=2, members=32, presets=("fast",), factors=(0.5, 1.0))
FULL = Profile(truths=8, members=64, presets=("fast", "accurate"), factors=(0.25, 0.5, 1.0, 2.0))


@dataclass(frozen=True)
class Cell:
    """One posterior."""

    setting: str
    truth: int
    members: int
    preset: str = ""
    corrector: str = ""
    keep: float = 0.0
    factor: float = 0.0


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for setting in SETTINGS:
        for truth in range(profile.truths):
            yield Cell(setting, truth, profile.members)
        for name in profile.presets:
            for corrector, keep in profile.correctors:
                for factor in profile.factors:
                    for truth in range(profile.truths):
                        yield Cell(setting, truth, profile.members, name, corrector, keep, factor)


Estimate = Callable[[Tensor], Tensor]


def roots(instrument: Instrument, mu: float, sigma: float, gamma: float) -> tuple[Tensor, Tensor]:
    r"""Returns the covariance of the guided state over :math:`\sigma^2`, were the prior Gaussian,
    and its root, both with shape (n, n)."""
    S = spectrum(0.0)
    q = S.vectors.flatten(0, -2).double()
    C = mu**2 * (q * S.values.double()) @ q.T + sigma**2 * torch.eye(len(q)).double()
    M = sigma * torch.linalg.inv(C)
    rows = torch.eye(len(q)).double().reshape(-1, LENGTH, 3)[:, :: instrument.every, 0].T
    HG = rows @ (torch.eye(len(q)).double() - sigma * M)
    variance = instrument.std**2 + gamma * (sigma / mu) ** 2
    K = torch.linalg.inv(M + sigma / mu**2 * HG.T @ HG / variance) / sigma
    values, vectors = torch.linalg.eigh((K + K.T) / 2)

    return (vectors * values) @ vectors.T, (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def draw(cell: Cell, guided: GaussianScore, instrument: Instrument) -> Tensor:
    """Draws standardised posterior trajectories (N, L, 3)."""
    recipe, sde = preset(cell.preset), guided.sde
    times, counts, taus = make_schedule(recipe.steps, recipe.corrections, recipe.tau)
    mu, sigma = (level.tolist() for level in coefficients(sde, times))
    clock = times.float()
    generator = Generator().manual_seed(cell.truth)
    shape = (cell.members, *sde.shape)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator)

    def estimate(x: Tensor, n: int) -> Tensor:
        with torch.no_grad():
            eps = guided(x, clock[n])
        denoised = (x - sigma[n] * eps) / mu[n]
        clipped = denoised.clamp(-recipe.clip, recipe.clip)
        return torch.where(clipped == denoised, eps, (x - mu[n] * clipped) / sigma[n])

    def mean(e: Tensor, f: Tensor) -> Tensor:
        return (e * f).mean(dim=(1, 2), keepdim=True)

    x, kept, eps = normal(), normal(), None
    for n, (count, tau) in enumerate(zip(counts, taus, strict=True), start=1):
        r = mu[n] / mu[n - 1]
        x = r * x + (sigma[n] - r * sigma[n - 1]) * (estimate(x, n - 1) if eps is None else eps)
        eps, tau = None, cell.factor * tau

        if cell.corrector == PRECONDITIONED and count:
            K, root = (k.float() for k in roots(instrument, mu[n], sigma[n], cases.GAMMA))
        for _ in range(count):
            e = estimate(x, n) if eps is None else eps
            if cell.corrector == PRECONDITIONED:
                Ke = (e.flatten(1) @ K).reshape(shape)
                delta = tau / mean(e, Ke)
                z = (normal().flatten(1) @ root).reshape(shape)
                x = x - sigma[n] * (delta * Ke + torch.sqrt(2 * delta) * z)
            elif cell.corrector == UNDERDAMPED:
                h = torch.sqrt(2 * tau / mean(e, e))
                kept = cell.keep * kept + (1 - cell.keep**2) ** 0.5 * normal() - h / 2 * e
                x = x + sigma[n] * h * kept
                eps = estimate(x, n)
                kept = kept - h / 2 * eps
            else:
                z = normal()
                both = (z + kept) / 2 if cell.corrector == AVERAGED else z
                delta, kept = tau / mean(e, e), z
                x = x - sigma[n] * (delta * e + torch.sqrt(2 * delta) * both)

    return (x - sigma[-1] * estimate(x, len(counts))) / mu[-1]


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers."""
    exact = front.second_run(cell.setting, cell.truth, cell.members)
    if not cell.corrector:
        return exact

    instrument = SETTINGS[cell.setting]
    case = cases.make_case(instrument, cell.truth, cell.members)
    prior = cases.load()
    A = Subsample(prior.shape, slice(None, None, instrument.every), slice(0, 1))
    y = instrument.readings(case.observation)
    guided = GaussianScore(y, A, instrument.std, prior, gamma=cases.GAMMA)
    x = cases.chain.postprocess(draw(cell, guided, instrument))

    return front.score(x, case) | front.relative(exact)


def table(records: Sequence[Record]) -> str:
    """Writes the means over truths as Markdown."""
    lines = []
    names = ("setting", "preset", "corrector", "keep", "factor")
    for (setting, name, corrector, keep, factor), group in study.group(records, names).items():
        label = f"{corrector}, c = {keep:g}" if keep else corrector or FILTER
        multiple = f"{factor:g}" if corrector else ""
        lines.append([setting, name, label, multiple, *front.columns(group)])

    return study.table(["", "", "corrector", "tau times", *front.COLUMNS.values()], lines)


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes the table and returns it."""
    records = study.evaluate_all(
        out / "correctors.jsonl", list(cells(profile)), partial(evaluate, device=device)
    )
    return study.write(out, "correctors", table(records))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
