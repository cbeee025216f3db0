r"""Ways of guiding at equal cost: a number gamma, the true covariance, the network's Jacobian.

    python -m experiments.lorenz.equal_cost --quick --out runs/lorenz

The settings, truths and scores are those of :mod:`experiments.front`, the schedule that of its
presets. A guided estimate takes one pass through the network and one back for each product with its
Jacobian, which MMPS takes 1 + iterations of (Rozet et al., 2024) and the others one. So many steps
are taken as a number of passes allows. The truths are those that the presets were chosen by.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import nn

from experiments import front
from sda_fast import VPSDE, GaussianScore, MMPSGaussianScore, sample
from sda_fast.observation import Subsample
from sda_fast.presets import scheduled

from .. import study
from ..study import Record
from . import cases
from .cases import FILTER, Case, Instrument
from .guidance import GAMMA, MMPS, SPECTRAL, spectrum
from .posterior import SETTINGS


@dataclass(frozen=True)
class Profile:
    """What is run: every strength of every method by every truth."""

    truths: int
    members: int
    passes: Sequence[int]
    strengths: dict[str, Sequence[float]] = field(default_factory=dict)


QUICK = Profile(
    truths=2,
    members=32,
    passes=(256,),
    strengths={GAMMA: (1e-2, 3e-2, 1e-1, 3e-1), SPECTRAL: (1e-2, 3e-2, 1e-1), MMPS: (1, 3)},
)
FULL = Profile(
    truths=4,
    members=64,
    passes=(256, 1024),
    strengths={
        GAMMA: (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        SPECTRAL: (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        MMPS: (1, 2, 3, 5),
    },
)


@dataclass(frozen=True)
class Cell:
    """One posterior."""

    setting: str
    truth: int
    members: int
    method: str
    strength: float = 0.0
    passes: int = 0

    @property
    def evaluations(self) -> int:
        """The number of guided estimates that the passes allow."""
        products = 1 + int(self.strength) if self.method == MMPS else 1
        return self.passes // (1 + products)


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for setting in SETTINGS:
        for truth in range(profile.truths):
            yield Cell(setting, truth, profile.members, FILTER)
        for passes in profile.passes:
            for method, strengths in profile.strengths.items():
                for strength in strengths:
                    for truth in range(profile.truths):
                        yield Cell(setting, truth, profile.members, method, strength, passes)


def guide(cell: Cell, case: Case, instrument: Instrument, prior: VPSDE) -> nn.Module:
    """Guides a prior by the method of a cell."""
    A = Subsample(prior.shape, slice(None, None, instrument.every), slice(0, 1))
    y = instrument.readings(case.observation).to(prior.device)
    if cell.method == MMPS:
        return MMPSGaussianScore(y, A, instrument.std, prior, iterations=int(cell.strength))
    gamma = spectrum(cell.strength) if cell.method == SPECTRAL else cell.strength
    return GaussianScore(y, A, instrument.std, prior, gamma=gamma)


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers."""
    exact = front.second_run(cell.setting, cell.truth, cell.members)
    if cell.method == FILTER:
        return exact

    instrument = SETTINGS[cell.setting]
    case = cases.make_case(instrument, cell.truth, cell.members)
    guided = guide(cell, case, instrument, cases.load(device=device))
    recipe = scheduled(cell.method, cell.evaluations)

    began = time.perf_counter()
    sde = VPSDE(guided, guided.sde.shape).to(device)
    x = sample(sde, (cell.members,), seed=cell.truth, **recipe.options)
    x = cases.chain.postprocess(x.cpu())
    seconds = time.perf_counter() - began

    return front.score(x, case) | front.relative(exact) | {"seconds": seconds}


def table(records: Sequence[Record]) -> str:
    """Writes the means over truths as Markdown."""
    lines = []
    names = ("setting", "passes", "method", "strength")
    for (setting, passes, method, strength), group in study.group(records, names).items():
        cell = Cell(setting, 0, 0, method, strength, passes)
        exact = method == FILTER
        name = method if exact else f"{method} {strength:g}"
        lines.append([setting, name, "" if exact else cell.evaluations, *front.columns(group)])

    return study.table(["", "", "evaluations", *front.COLUMNS.values()], lines)


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes the table and returns it."""
    records = study.evaluate_all(
        out / "equal_cost.jsonl", list(cells(profile)), partial(evaluate, device=device)
    )
    return study.write(out, "equal_cost", table(records))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
