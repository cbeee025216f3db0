r"""How posteriors degrade where the prior is of another system than the truth.

    python -m experiments.lorenz.misspecified --quick --out runs/lorenz

The truth follows the Lorenz system with rho off by 5, 10 and 20 % from the 28 that the prior was
trained with, and is observed in its first coordinate at every 8th state with a standard deviation
of 0.05 ("lo") or at every state with 0.25 ("hi"), in standardised units. Beside our posterior are
set

    filter, true rho     a particle filter that knows the truth's rho: the floor
    filter, rho = 28     one that believes in 28, what the mistake costs an exact method

and all are compared with another run of the first, and with the truth.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), where prior and truth are of one system
    | https://arxiv.org/abs/2306.10574
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from sda_fast import NoisyLorenz63

from .. import study
from ..study import Record, number, percent
from . import cases
from .cases import Case, Instrument

SETTINGS = {"lo": Instrument(8, 0.05), "hi": Instrument(1, 0.25)}
RIGHT, WRONG, OURS = "filter, true rho", "filter, rho = 28", "ours, rho = 28"

METRICS = {
    "rmse": "RMSE",
    "spread_skill": "spread/RMSE",
    "coverage": "coverage",
    "energy": "energy",
    "w1": "W1",
    "log_likelihood": "log likelihood",
    "lost": "lost",
}


@dataclass(frozen=True)
class Profile:
    """What is run."""

    settings: Sequence[str]
    truths: int
    members: int
    steps: int
    corrections: int
    tau: float
    errors: Sequence[int]  # of rho, in percent


QUICK = Profile(
    settings=("lo",),
    truths=2,
    members=32,
    steps=64,
    corrections=2,
    tau=0.5,
    errors=(-20, -10, -5, 0, 5, 10, 20),
)
FULL = Profile(
    settings=("lo", "hi"),
    truths=8,
    members=256,
    steps=256,
    corrections=4,
    tau=0.5,
    errors=(-20, -15, -10, -5, 0, 5, 10, 15, 20),
)


@dataclass(frozen=True)
class Cell:
    """One posterior. Steps, C and tau are those of the sampler, for filters 0."""

    setting: str
    error_of_rho: int
    truth: int
    members: int
    method: str
    steps: int = 0
    C: int = 0
    tau: float = 0.0


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    sampler = (profile.steps, profile.corrections, profile.tau)
    for error in profile.errors:
        for truth in range(profile.truths):
            for setting in profile.settings:
                start = (setting, error, truth, profile.members)
                yield Cell(*start, RIGHT)
                yield Cell(*start, WRONG)
                yield Cell(*start, OURS, *sampler)


@cache
def make_system(error: int) -> NoisyLorenz63:
    """Makes the system whose rho is off by some percent."""
    if error == 0:
        return cases.chain
    return NoisyLorenz63(dt=cases.chain.dt, rho=28 * (1 + error / 100))


@cache
def make_case(setting: str, error: int, seed: int, members: int) -> Case:
    """Simulates and observes a truth, with its posterior by a filter that knows rho."""
    system = make_system(error)
    truth, generator = cases.simulate(seed, system)
    observation = cases.observe(SETTINGS[setting], truth, generator)
    reference = cases.filtered(observation, 1, seed, members, system)
    return Case(truth, observation, reference)


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers."""
    case = make_case(cell.setting, cell.error_of_rho, cell.truth, 256)
    system = make_system(cell.error_of_rho)
    if cell.method in (RIGHT, WRONG):
        believed = system if cell.method == RIGHT else cases.chain
        x = cases.filtered(case.observation, 2, cell.truth, cell.members, believed)
    else:
        guided = cases.guide(case, SETTINGS[cell.setting], cases.load(device=device))
        x = cases.draw(
            guided,
            cell.members,
            seed=cell.truth,
            steps=cell.steps,
            corrections=cell.C,
            tau=cell.tau,
        )

    return cases.measure(x, case, system)


def summarise(records: Sequence[Record]) -> list[Record]:
    """Returns the means over truths."""
    names = ("setting", "error_of_rho", "method")
    rows = []
    for values, group in study.group(records, names).items():
        row: Record = dict(zip(names, values, strict=True))
        row["diverged"] = sum("error" in record for record in group)
        rows.append(row | {name: study.mean(group, name) for name in METRICS})
    return rows


def tables(rows: Sequence[Record]) -> str:
    """Writes the means over truths."""
    lines = []
    for row in rows:
        shares = ("coverage", "lost")
        scores = [(percent if m in shares else number)(row[m]) for m in METRICS]
        method = row["method"] + (f" ({row['diverged']} diverged)" if row["diverged"] else "")
        lines.append((row["setting"], f"{row['error_of_rho']:+d} %", method, *scores))

    return study.table(["", "error of rho", "", *METRICS.values()], lines)


def draw_figure(rows: Sequence[Record]) -> Any:
    """Draws the scores against the error of rho."""
    metrics = ("rmse", "spread_skill", "energy")
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = study.panels(len(settings), len(metrics), width=3.6, height=2.8)

    for line, setting in zip(axes, settings, strict=True):
        for panel, metric in zip(line, metrics, strict=True):
            for method, colour in (
                (RIGHT, "black"),
                (WRONG, study.GREY),
                (OURS, study.BLUE),
            ):
                mine = [r for r in rows if r["method"] == method and r["setting"] == setting]
                mine = [r for r in mine if r[metric] is not None]
                errors = [r["error_of_rho"] for r in mine]
                panel.plot(
                    errors, [r[metric] for r in mine], "o-", color=colour, ms=4, label=method
                )
            panel.set_xlabel("error of rho, %")
            panel.set_title(f"{setting}, {METRICS[metric]}", fontsize="medium")
            panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
    axes[0, 0].legend(fontsize="x-small", frameon=False)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes table and figure, returns the table."""
    records = study.evaluate_all(
        out / "misspecified.jsonl", list(cells(profile)), partial(evaluate, device=device)
    )
    rows = summarise(records)
    return study.write(out, "misspecified", tables(rows), draw_figure(rows))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
