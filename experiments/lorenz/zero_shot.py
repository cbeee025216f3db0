r"""The paper's third claim: one prior, many ways to observe, nothing trained again.

    python -m experiments.lorenz.zero_shot --full --out runs/zero_shot

Truths of 65 states are observed by instruments of several frequencies, noises, coordinates and
functions, all in standardised units. Each posterior by the shipped prior is set beside a particle
filter of 16384 particles and an ensemble Kalman smoother, as in :mod:`.posterior`. The rows
"particle filter" are the floor, a second run of it against the first.

    W1, energy       distances to the particle filter's trajectories, in physical units
    above the floor  W1 less the floor's of the same truth, and the standard error over truths
    RMSE             of the members' mean against the truth, in physical units
    spread/RMSE      of the members to that error, 1 being reliable
    coverage         of the truth by the central 90 % of the members

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), sections 3.2 and 4
    | https://arxiv.org/abs/2306.10574
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import study
from ..study import Record
from . import cases
from .cases import FILTER, JUNCTION, METRICS, SMOOTHER, Instrument


def all_three(x: Tensor) -> Tensor:
    """Observes a, b and c of standardised states (*, 3)."""
    return x


def second(x: Tensor) -> Tensor:
    """Observes b."""
    return x[..., 1:2]


def last_two(x: Tensor) -> Tensor:
    """Observes b and c."""
    return x[..., 1:]


def saturated(x: Tensor) -> Tensor:
    """Observes a by an instrument that saturates, arctan 2a."""
    return torch.atan(2 * x[..., :1])


def radius(x: Tensor) -> Tensor:
    """Observes the distance from the centre of the attractor."""
    return (x.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()


def product(x: Tensor) -> Tensor:
    """Observes the product of a and c."""
    return x[..., :1] * x[..., 2:]


REFERENCE = 256  # trajectories of the filter that all are compared with

INSTRUMENTS = {
    "a, every 8th, 0.05 (lo)": Instrument(8, 0.05),
    "a, every state, 0.25 (hi)": Instrument(1, 0.25),
    "a, every 16th, 0.05": Instrument(16, 0.05),
    "b, every 4th, 0.5": Instrument(4, 0.5, second),
    "b and c, every 8th, 0.1": Instrument(8, 0.1, last_two),
    "a, b and c, every 16th, 0.05": Instrument(16, 0.05, all_three),
    "arctan 2a, every 4th, 0.1": Instrument(4, 0.1, saturated),
    "|(a, b, c)|, every 4th, 0.1": Instrument(4, 0.1, radius),
    "a c, every 4th, 0.1": Instrument(4, 0.1, product),
}


@dataclass(frozen=True)
class Profile:
    """What is run."""

    truths: int
    members: int
    recipe: str


FULL = Profile(truths=4, members=32, recipe="fast")
QUICK = Profile(truths=1, members=8, recipe="fast")


@dataclass(frozen=True)
class Cell:
    """One posterior, ours by a recipe."""

    instrument: str
    truth: int
    members: int
    method: str
    recipe: str | None = None


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for truth in range(profile.truths):
        for name in INSTRUMENTS:
            for method in (FILTER, SMOOTHER):
                yield Cell(name, truth, profile.members, method)
            yield Cell(name, truth, profile.members, JUNCTION, profile.recipe)


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers, and the bands of the figure."""
    instrument = INSTRUMENTS[cell.instrument]
    case = cases.make_case(instrument, cell.truth, REFERENCE)
    if cell.recipe is None:
        x = cases.peer(cell, case.observation)
    else:
        guided = cases.guide(case, instrument, cases.load(cell.method, device))
        options = cases.RECIPES[cell.recipe].options
        x = cases.draw(guided, cell.members, seed=cell.truth, **options)

    record: Record = cases.measure(x, case)
    if cell.truth == 0:
        band = cases.kept(x)[:, :, 0].quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
        record |= {"band": rounded(band), "truth_a": rounded(case.truth[:, 0])}
        record["observed_a"] = rounded(readings_of_a(instrument, case))
    return record


def readings_of_a(instrument: Instrument, case: cases.Case) -> Tensor:
    """Returns the readings of a itself in physical units, none of an instrument that has none."""
    if instrument.of not in (cases.first, all_three):
        return torch.empty(0)
    y = instrument.readings(case.observation)[:, :1]
    return cases.chain.postprocess(y.expand(-1, 3))[:, 0]


def rounded(x: Tensor) -> Any:
    """Returns numbers for the figure alone."""
    return (x.double() * 100).round().div(100).tolist()


def tables(records: Sequence[Record]) -> str:
    """Writes the means over truths."""
    records = cases.above_floor(records, ("instrument", "truth"))
    rows = study.average(records, ("instrument", "method"), METRICS)
    lines = [(r["instrument"], study.method(r), *study.scores(r, METRICS)) for r in rows]
    return study.table(["observed", "", *METRICS.values()], lines)


def draw_panel(panel: Any, name: str, records: Sequence[Record]) -> None:
    """Draws what was observed by an instrument, when, the truth, and bands of a."""
    panel.set_title(name, fontsize="medium")
    panel.margins(y=0.15)  # below is marked when
    for record in records:
        colour = {FILTER: study.GREY, JUNCTION: study.BLUE}[record["method"]]
        low, middle, high = record["band"]
        label = f"{record['method']}: median, 90 %"
        panel.fill_between(range(len(low)), low, high, color=colour, alpha=0.3, lw=0, label=label)
        panel.plot(middle, color=colour, lw=1.2)

    for record in records[:1]:
        panel.plot(record["truth_a"], color="black", lw=1.2, label="truth")
        states = range(0, len(record["truth_a"]), INSTRUMENTS[name].every)
        style = {"color": study.ORANGE, "ls": "none"}
        below = {"transform": panel.get_xaxis_transform(), "label": "observed states"}
        panel.plot(states, [0.04] * len(states), marker="|", ms=6, **style, **below)
        if record["observed_a"]:
            panel.plot(
                states, record["observed_a"], marker=".", ms=4, label="readings of a", **style
            )


def draw_figure(records: Sequence[Record]) -> Any:
    """Draws the bands of a, the filter's and ours, for each instrument."""
    shown = [r for r in records if r["truth"] == 0 and "error" not in r and r["method"] != SMOOTHER]
    columns = -(-len(INSTRUMENTS) // 3)
    figure, axes = study.panels(3, columns, width=3, height=2.1, sharex=True, sharey=True)

    for panel, name in zip(axes.flat, INSTRUMENTS, strict=True):
        draw_panel(panel, name, [r for r in shown if r["instrument"] == name])
    for panel in axes[:, 0]:
        panel.set_ylabel("a")
    for panel in axes[-1]:
        panel.set_xlabel("state")
    study.legend(figure, *axes.flat, loc="outside lower center", ncols=5)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes table and figure, returns the table."""
    records = study.evaluate_all(
        out / "zero_shot.jsonl", list(cells(profile)), partial(evaluate, device=device)
    )
    return study.write(out, "zero_shot", tables(records), draw_figure(records))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/zero_shot")
