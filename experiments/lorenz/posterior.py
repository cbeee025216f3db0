r"""The paper's first result: posteriors of Lorenz-63 against a particle filter.

    python -m experiments.lorenz.posterior --full --out runs/posterior

A truth of 65 states is observed in its first coordinate, every 8th state with a standard deviation
of 0.05 ("lo") or every state with 0.25 ("hi"), in standardised units. Posteriors by k, the rule of
composition and the number C of corrections are set beside trajectories of a bootstrap particle
filter of 16384 particles. A second, independent run of it gives the floor, what an exact method
would score, and an ensemble Kalman smoother a peer. The priors are

    length-aware, k = 1 to 4   one network of windows up to 9 states, by the published rule
    junction, w = 9            the same network by the junction rule
    global                     a fully convolutional network over whole trajectories, trained here

    log prior        E log p(x_2:L | x_1), that of the truth's law is near 82
    log likelihood   E log p(y | x)
    W1, energy       distances to the particle filter's trajectories, in physical units
    above the floor  W1 less the floor's of the same truth, and the standard error over truths
    lost             members that left the attractor, beyond 4 standard deviations, not scored

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
from typing import Any

from .. import study
from ..study import Record
from . import cases, trajectory_network
from .cases import FILTER, JUNCTION, PRIORS, SMOOTHER, Instrument
from .trajectory_network import GLOBAL

# the paper's low- and high-frequency observations
SETTINGS = {"lo": Instrument(8, 0.05), "hi": Instrument(1, 0.25)}

METRICS = {
    "log_prior": "log prior",
    "log_likelihood": "log likelihood",
    "w1": "W1",
    "above": "above the floor",
    "energy": "energy",
    "lost": "lost",
}


@dataclass(frozen=True)
class Profile:
    """What is run: all combinations."""

    truths: int
    members: int
    steps: int
    corrections: Sequence[int]
    tau: float
    methods: Sequence[str]
    iterations: int  # of the training of the network over whole trajectories


FULL = Profile(
    truths=5,
    members=8,
    steps=32,
    corrections=(0, 1, 2, 4, 8, 16),
    tau=0.5,
    methods=(*(f"length-aware, k = {k}" for k in (1, 2, 3, 4)), JUNCTION, GLOBAL),
    iterations=6000,
)
QUICK = Profile(
    truths=1,
    members=8,
    steps=32,
    corrections=(0, 1, 4),
    tau=0.5,
    methods=("length-aware, k = 1", "length-aware, k = 4", JUNCTION, GLOBAL),
    iterations=600,
)


@dataclass(frozen=True)
class Cell:
    """One posterior. Steps, C and tau are those of the sampler, for other methods 0; iterations
    are of the training of a network that is trained here."""

    setting: str
    truth: int
    members: int
    method: str
    steps: int = 0
    C: int = 0
    tau: float = 0.0
    iterations: int | None = None


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells, truth by truth, cheap ones first."""
    for truth in range(profile.truths):
        for setting in SETTINGS:
            for method in (FILTER, SMOOTHER):
                yield Cell(setting, truth, profile.members, method)
        for C in profile.corrections:
            sampler = (profile.steps, C, profile.tau if C else 0.0)
            for setting in SETTINGS:
                for method in profile.methods:
                    trained = profile.iterations if method == GLOBAL else None
                    yield Cell(setting, truth, profile.members, method, *sampler, trained)


def evaluate(cell: Cell, folder: Path, device: str = "cpu") -> Record:
    """Returns a cell's numbers. The network over whole trajectories is trained if need be."""
    instrument = SETTINGS[cell.setting]
    reference = max(cell.members, 256)  # the more of them, the less W1 is the luck of the draw
    case = cases.make_case(instrument, cell.truth, reference)
    if cell.method in PRIORS:
        prior = cases.load(cell.method, device)
    elif cell.iterations is not None:
        prior = trajectory_network.load(folder, cell.iterations, device)

    began = time.perf_counter()
    if cell.method in (FILTER, SMOOTHER):
        x = cases.peer(cell, case.observation)
    else:
        guided = cases.guide(case, instrument, prior)
        x = cases.draw(guided, cell.members, seed=cell.truth, **cases.even(cell))
    seconds = time.perf_counter() - began
    return cases.measure(x, case) | {"seconds": seconds}


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes table and figure, returns the table."""
    records = study.evaluate_all(
        out / "posterior.jsonl",
        list(cells(profile)),
        partial(evaluate, folder=out / "priors", device=device),
    )
    records = cases.above_floor(records, ("setting", "truth"))
    rows = study.average(records, ("setting", "method", "steps", "C", "tau"), METRICS)
    settings, methods = list(SETTINGS), [FILTER, SMOOTHER, *PRIORS, GLOBAL]
    rows.sort(key=lambda r: (settings.index(r["setting"]), methods.index(r["method"])))
    return study.write(out, "posterior", table(rows), draw_figure(rows))


def table(rows: Sequence[Record]) -> str:
    """Writes rows as Markdown. A row of the particle filter is the floor of its setting."""
    lines = []
    for row in rows:
        evaluations = row["steps"] * (1 + row["C"])
        settings = (row["C"], row["tau"] or "", evaluations) if evaluations else ("", "", "")
        lines.append((row["setting"], study.method(row), *settings, *study.scores(row, METRICS)))

    return study.table(["", "", "C", "tau", "score evaluations", *METRICS.values()], lines)


# scales and labels of what is drawn
DRAWN = {
    "w1": ("log", "W1 (physical units)"),
    "log_prior": ("symlog", "log prior (nats)"),
    "log_likelihood": ("symlog", "log likelihood (nats)"),
}


def draw_panel(panel: Any, rows: Sequence[Record], metric: str, styles: dict[str, Any]) -> None:
    """Draws a score over C, with those of other methods as lines."""
    for row in rows:
        if not row["steps"]:
            dash = "-" if row["method"] == FILTER else "--"
            panel.axhline(row[metric], color="black", ls=dash, lw=1, label=row["method"])
    for method, style in styles.items():
        mine = [row for row in rows if row["method"] == method]
        corrections, scores = ([row[name] for row in mine] for name in ("C", metric))
        panel.plot(corrections, scores, ms=4, label=method, **style)


def draw_figure(rows: Sequence[Record]) -> Any:
    """Draws W1, log prior and log likelihood over C, with the particle filter's as lines."""
    figure, axes = study.panels(3, len(SETTINGS), width=4.5, height=2.2, sharex=True, sharey="row")
    methods = [method for method in (*PRIORS, GLOBAL) if any(r["method"] == method for r in rows)]
    centred = [method for method in methods if method not in (JUNCTION, GLOBAL)]
    colours = dict(zip(centred, study.shades(len(centred)), strict=True))
    styles = {method: {"color": colour, "marker": "o"} for method, colour in colours.items()}
    styles |= {JUNCTION: {"color": study.ORANGE, "marker": "s"}}
    styles |= {GLOBAL: {"color": study.PINK, "marker": "^"}}

    for column, (setting, instrument) in zip(axes.T, SETTINGS.items(), strict=True):
        every = f"every {instrument.every}th" if instrument.every > 1 else "every"
        title = f"{setting}: a of {every} state, std {instrument.std:g}"
        column[0].set_title(title, fontsize="medium")
        for panel, metric in zip(column, DRAWN, strict=True):
            chosen = [row for row in rows if row["setting"] == setting and row[metric] is not None]
            draw_panel(panel, chosen, metric, {method: styles[method] for method in methods})
        column[-1].set_xlabel("corrections C")
    for panel, (scale, label) in zip(axes[:, 0], DRAWN.values(), strict=True):
        panel.set_ylabel(label)
        panel.set_yscale(scale, **({"linthresh": 20} if scale == "symlog" else {}))
    study.plain_ticks(axes[0, 0].yaxis)
    axes[1, 0].set_yticks([-10000, -1000, -100, 0, 100], ["-10000", "-1000", "-100", "0", "100"])
    axes[2, 0].set_yticks([-100, -10, 0, 10], ["-100", "-10", "0", "10"])
    shown = sorted({row["C"] for row in rows})
    axes[0, 0].set_xscale("symlog", linthresh=1, base=2)
    axes[0, 0].set_xticks(shown, [f"{C}" for C in shown])
    axes[0, 0].set_xlim(-0.2, 1.2 * shown[-1])
    study.legend(figure, axes[0, 0], loc="outside lower center", ncols=4)

    return figure


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/posterior")
