r"""The paper's first result: posteriors of Lorenz-63 against a particle filter.

    python -m experiments.lorenz.posterior --quick --out runs/lorenz

A truth of 65 states is observed in its first coordinate, every 8th state with a standard deviation
of 0.05 ("lo") or every state with 0.25 ("hi"), in standardised units. Posteriors by the shipped
priors, by the rule of composition, the number C of corrections and their amplitude tau, are set
beside trajectories of a bootstrap particle filter of 16384 particles. A second, independent run of
it gives the floor, what an exact method would score, and an ensemble Kalman smoother a peer.

    log prior        E log p(x_2:L | x_1), that of the truth's law is near 82
    log likelihood   E log p(y | x)
    W1, energy       distances to the particle filter's trajectories, in physical units
    coverage         of the truth by the central 90 % of the members
    lost             members that left the attractor by 10 standard deviations, not scored

Each cell's numbers are kept in `posterior.jsonl` as soon as they are known, and a run that is
repeated with the same folder goes on where it ended. At the end `posterior.md` holds the means over
truths and `posterior.png` shows them.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 4.1
    | https://arxiv.org/abs/2306.10574
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Generator, Tensor

from sda_fast.evaluation import ensemble_kalman_smoother

from .. import study
from ..study import Record, number, percent
from . import cases
from .cases import FILTER, JUNCTION, PRIORS, SMOOTHER, Case, Instrument

# the paper's low- and high-frequency observations
SETTINGS = {"lo": Instrument(8, 0.05), "hi": Instrument(1, 0.25)}

METRICS = {
    "log_prior": "log prior",
    "log_likelihood": "log likelihood",
    "w1": "W1",
    "energy": "energy",
    "coverage": "coverage",
    "lost": "lost",
}


@dataclass(frozen=True)
class Profile:
    """What is run: all combinations."""

    truths: int
    members: int
    steps: int
    corrections: Sequence[int]
    taus: Sequence[float]
    methods: Sequence[str] = tuple(PRIORS)


QUICK = Profile(
    truths=2,
    members=64,
    steps=64,
    corrections=(0, 1, 4),
    taus=(0.5,),
    methods=("centre, k = 2", "centre, w = 9", JUNCTION),
)
FULL = Profile(truths=4, members=256, steps=256, corrections=(0, 1, 2, 4, 8, 16), taus=(0.25, 0.5))


@dataclass(frozen=True)
class Cell:
    """One posterior. Steps, C and tau are those of the sampler, for other methods 0."""

    setting: str
    truth: int
    members: int
    method: str
    steps: int = 0
    C: int = 0
    tau: float = 0.0


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells, cheap ones first."""
    for truth in range(profile.truths):
        for setting in SETTINGS:
            for method in (FILTER, SMOOTHER):
                yield Cell(setting, truth, profile.members, method)
    for C in profile.corrections:
        for tau in profile.taus if C else (0.0,):  # tau does nothing where nothing is corrected
            for truth in range(profile.truths):
                for setting in SETTINGS:
                    for method in profile.methods:
                        yield Cell(setting, truth, profile.members, method, profile.steps, C, tau)


def draw(cell: Cell, case: Case, device: str) -> Tensor:
    """Draws physical posterior trajectories, with shape (N, L, 3)."""
    if cell.method == FILTER:
        return cases.filtered(case.observation, 2, cell.truth, cell.members)
    if cell.method == SMOOTHER:
        x = cases.attractor(3)[: cell.members]
        generator = Generator().manual_seed(cell.truth)
        return ensemble_kalman_smoother(cases.chain, case.observation, x, generator=generator)

    guided = cases.guide(case, SETTINGS[cell.setting], cases.load(cell.method, device))
    return cases.draw(
        guided,
        cell.members,
        seed=cell.truth,
        steps=cell.steps,
        corrections=cell.C,
        tau=cell.tau,
    )


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers."""
    case = cases.make_case(SETTINGS[cell.setting], cell.truth, cell.members)
    began = time.perf_counter()
    x = draw(cell, case, device)
    seconds = time.perf_counter() - began
    return cases.measure(x, case) | {"seconds": seconds}


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes table and figure, returns the table."""
    wanted = list(cells(profile))
    records = study.evaluate_all(out / "posterior.jsonl", wanted, partial(evaluate, device=device))
    rows = average(records)
    return study.write(out, "posterior", table(rows), draw_figure(rows))


def average(records: Sequence[Record]) -> list[Record]:
    """Returns the means over truths, and how many of them diverged, in a table's order."""
    names = ("setting", "method", "steps", "C", "tau")
    rows = []
    for values, group in study.group(records, names).items():
        row: Record = dict(zip(names, values, strict=True))
        row |= {"truths": len(group), "diverged": sum("error" in record for record in group)}
        rows.append(row | {name: study.mean(group, name) for name in METRICS})

    settings, methods = list(SETTINGS), [FILTER, SMOOTHER, *PRIORS]
    rows.sort(key=lambda r: (settings.index(r["setting"]), methods.index(r["method"])))

    return rows


def table(rows: Sequence[Record]) -> str:
    """Writes rows as Markdown. A row of the particle filter is the floor of its setting."""
    lines = []
    for row in rows:
        evaluations = row["steps"] * (1 + row["C"])
        settings = (row["C"], row["tau"] or "", evaluations) if evaluations else ("", "", "")
        if row["w1"] is None:
            scores = ["diverged"] * len(METRICS)
        else:
            shares = ("coverage", "lost")
            scores = [(percent if name in shares else number)(row[name]) for name in METRICS]
        name = row["method"]
        if row["diverged"]:
            name += f" ({row['diverged']} of {row['truths']} diverged)"
        lines.append((row["setting"], name, *settings, *scores))

    return study.table(["", "", "C", "tau", "score evaluations", *METRICS.values()], lines)


def draw_figure(rows: Sequence[Record]):
    """Draws W1 and the log prior against C, with the particle filter's as lines."""
    metrics = ("w1", "log_prior")
    figure, axes = study.panels(len(metrics), len(SETTINGS), width=4.2, sharex=True)

    for column, setting in zip(axes.T, SETTINGS, strict=True):
        column[0].set_title(setting, fontsize="medium")
        for panel, metric in zip(column, metrics, strict=True):
            chosen = [row for row in rows if row["setting"] == setting and row[metric] is not None]
            for row in chosen:
                if not row["steps"]:
                    dash = "-" if row["method"] == FILTER else "--"
                    panel.axhline(row[metric], color="black", ls=dash, lw=1, label=row["method"])
            corrected = [row for row in chosen if row["C"]]
            for (method, tau), points in study.group(corrected, ("method", "tau")).items():
                # C = 0 is the same for every tau
                start = [r for r in chosen if r["method"] == method and r["steps"] and not r["C"]]
                points = start + points
                panel.plot(
                    [row["C"] for row in points],
                    [row[metric] for row in points],
                    "o-" if tau == 0.5 else "s:",
                    color=study.COLOURS[list(PRIORS).index(method)],
                    ms=4,
                    label=f"{method}, tau = {tau:g}",
                )
            panel.set_xticks(sorted({row["C"] for row in chosen}))
            if metric == "w1":
                panel.set_yscale("log")
            else:
                panel.set_yscale("symlog", linthresh=100)
    for panel, metric in zip(axes[:, 0], metrics, strict=True):
        panel.set_ylabel(METRICS[metric])
    for panel in axes[-1]:
        panel.set_xlabel("corrections C")
    axes[0, -1].legend(fontsize="x-small", frameon=False)

    return figure


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
