r"""Quality against cost: posteriors of Lorenz-63 by the published recipe and by this package's.

    python -m experiments.front --quick --out runs/front
    python -m experiments.front --page docs/front.md

The cases, the particle filter that they are compared with and the scores are those of
:mod:`experiments.lorenz.cases`. Each way of sampling is a recipe: the published one, the
junction rule with even steps, each further ingredient alone, and the presets of
:mod:`sda_fast.presets`. The presets were chosen by truths 0 and 1, so those judged here begin
with number 2. A second, independent run of the particle filter is scored as if it were a recipe: it
is what an exact method would score. W1 is given over its W1, the log prior beside its log prior,
truth by truth. Seconds are those of the processor.

Each posterior's numbers are kept in `front.jsonl` as soon as they are known, and a run with the
same folder goes on where the last one ended. With `--keep` the means go to `experiments/front.json`
as well. With `--page` nothing is sampled: table and figure are made from that file, into the page
and beside it.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import study
from experiments.lorenz.cases import (
    FILTER,
    LENGTH,
    Case,
    chain,
    filtered,
    guide,
    kept,
    make_case,
    measure,
)
from experiments.lorenz.posterior import SETTINGS
from experiments.study import Record, number, percent
from sda_fast import VPSDE, Junction, Recipe, load_prior, preset, sample
from sda_fast.evaluation import coverage, log_prior
from sda_fast.io import atomic_write

RESULTS = Path(__file__).with_suffix(".json")
START, END = "<!-- python -m experiments.front -->", "<!-- end -->"

PRIOR, SHORTER = "lorenz63-w13", "lorenz63-w9"
LAST = 0.003  # where the grids of the former end
EVEN = Recipe("junction, even steps", "junction", 64, 1, 0.5)


def recipes() -> Iterator[tuple[str, str, Recipe]]:
    """Lists names, priors and recipes."""
    for name in PRESETS:
        yield name, PRIOR, preset(name, last=LAST)
    for name, shorter in zip(PRESETS, BY_SHORTER, strict=True):
        yield shorter, SHORTER, preset(name)
    yield EVEN.name, PRIOR, EVEN

    grid = tuple(0.9 * (1 - n / 64) ** 2 for n in range(65))
    shrinking = tuple(0.5 if t > 0.02 else 0.125 for t in torch.linspace(1, 0, 65)[1:].tolist())
    mid = tuple(2 * int(t < 0.5) for t in torch.linspace(1, 0, 65)[1:].tolist())
    for name, change in (
        ("+ quadratic grid from 0.9", {"steps": grid}),
        ("+ corrections below 0.5 only, twice", {"corrections": mid}),
        ("+ a smaller tau at the end", {"tau": shrinking}),
    ):
        yield name, PRIOR, replace(EVEN, **change)

    fast = preset("fast", last=LAST)
    yield "fast, no clip", PRIOR, replace(fast, clip=None)
    yield "fast, centre", PRIOR, replace(fast, composition="centre")
    yield "fast, ends at 0.007", PRIOR, preset("fast")
    yield "fast, stride 4", PRIOR, replace(fast, composition=Junction(13, 4))
    yield "published", "lorenz63", preset("published")


@dataclass(frozen=True)
class Profile:
    """What is run: the presets by some truths, even steps and single ingredients by fewer, and so
    the published recipe, which takes most of the time."""

    truths: Sequence[int]
    others: Sequence[int]
    published: Sequence[int]
    members: int


QUICK = Profile(truths=range(2, 4), others=range(2, 4), published=(), members=32)
FULL = Profile(truths=range(2, 10), others=range(2, 6), published=range(2, 6), members=32)
PRESETS = ("draft", "fast", "accurate")
OF_9 = ", windows of 9"
BY_SHORTER = tuple(name + OF_9 for name in PRESETS)


@dataclass(frozen=True)
class Cell:
    """One posterior."""

    setting: str
    name: str
    truth: int
    members: int
    evaluations: int = 0


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells, those of the published recipe last."""
    for setting in SETTINGS:
        for truth in profile.truths:
            yield Cell(setting, FILTER, truth, profile.members)
    for name, _, recipe in recipes():
        some = dict.fromkeys((*PRESETS, *BY_SHORTER), profile.truths)
        some["published"] = profile.published
        for truth in some.get(name, profile.others):
            for setting in SETTINGS:
                yield Cell(setting, name, truth, profile.members, recipe.evaluations)


def evaluate(cell: Cell) -> Record:
    """Samples one posterior and scores it."""
    exact = second_run(cell.setting, cell.truth, cell.members)
    if cell.name == FILTER:
        return exact

    instrument = SETTINGS[cell.setting]
    case = make_case(instrument, cell.truth, cell.members)
    prior_name, recipe = next((p, r) for name, p, r in recipes() if name == cell.name)
    prior = load_prior(prior_name, length=LENGTH, composition=recipe.composition)
    guided = guide(case, instrument, prior)

    began = time.process_time()
    x = sample(VPSDE(guided, prior.shape), (cell.members,), seed=cell.truth, **recipe.options)
    seconds = time.process_time() - began

    return score(chain.postprocess(x), case) | relative(exact) | {"seconds": seconds}


def score(x: Tensor, case: Case) -> Record:
    """Scores physical trajectories.

    The 90 % band, fair to their number, is asked for the truth and for the particle filter's
    members. The latter are truths of the same observation, many of them, where the one truth may
    happen to lie at the edge of the exact posterior for long."""
    good = kept(x)
    return measure(x, case) | {
        "coverage": coverage(good, case.truth, fair=True),
        "exact_coverage": coverage(good, case.reference, fair=True),
    }


@cache
def second_run(setting: str, truth: int, members: int) -> Record:
    """Scores a second run of the particle filter against the first."""
    case = make_case(SETTINGS[setting], truth, members)
    scores = score(filtered(case.observation, 2, truth, members), case)
    own = (LENGTH - 1) * float(log_prior(chain, case.truth[None].double()).mean())
    return scores | relative(scores) | {"truth_log_prior": own}


def relative(exact: Record) -> Record:
    """Names what a posterior's scores are set beside."""
    return {"floor": exact["w1"], "exact_log_prior": exact["log_prior"]}


# what the studies beside this one show, and their titles
COLUMNS = {
    "w1": "W1 / floor",
    "energy": "energy",
    "log_prior": "log prior",
    "log_likelihood": "log likelihood",
    "exact_coverage": "coverage of the filter's",
    "lost": "lost",
}


def columns(records: Sequence[Record]) -> list[str]:
    """Writes the means of :data:`COLUMNS` over truths."""
    over = [r if "error" in r else r | {"w1": r["w1"] / r["floor"]} for r in records]
    return [
        (percent if name in ("exact_coverage", "lost") else number)(study.mean(over, name))
        for name in COLUMNS
    ]


def run(out: Path, profile: Profile) -> list[Record]:
    """Evaluates what the folder does not hold yet; returns all records, in order."""
    return study.evaluate_all(out / "front.jsonl", list(cells(profile)), evaluate)


def average(records: Sequence[Record]) -> list[Record]:
    """Returns the means over truths, with their standard errors."""
    rows = []
    for (setting, name), group in study.group(records, ("setting", "name")).items():
        good = [record for record in group if "error" not in record]
        row = {"setting": setting, "name": name, "evaluations": group[0]["evaluations"]}
        row |= {"truths": len(group), "diverged": len(group) - len(good)}
        if good:
            row |= {
                "w1": mean([r["w1"] / r["floor"] for r in good]),
                "gap": mean([r["log_prior"] - r["exact_log_prior"] for r in good]),
            }
            for metric in ("energy", "log_prior", "log_likelihood", "coverage", "exact_coverage"):
                row[metric] = mean([r[metric] for r in good])
            row["lost"] = sum(r["lost"] for r in good) / len(good)
            row["seconds"] = sum(r.get("seconds", 0.0) for r in good) / len(good)
        rows.append(row)

    return sorted(rows, key=lambda row: list(SETTINGS).index(row["setting"]))


def mean(values: Sequence[float]) -> list[float | None]:
    """Returns the mean, and its standard error where there are two values."""
    x = torch.tensor(values, dtype=torch.float64)
    error = float(x.std()) / math.sqrt(len(x)) if len(x) > 1 else None
    return [float(x.mean()), error]


def with_error(value: Sequence[float | None], style: str = ".2f") -> str:
    """Writes a mean and its standard error."""
    error = "" if value[1] is None else f" ± {value[1]:{style}}"
    return f"{value[0]:{style}}{error}"


def table(rows: Sequence[Record]) -> str:
    """Writes rows as Markdown."""
    head = ["", "", "truths", "evaluations", "seconds", "W1 / floor", "energy", "log prior"]
    head += ["less the filter's", "log likelihood", "coverage", "of the filter's", "lost"]
    lines = []
    for row in rows:
        cells = [row["setting"], row["name"], row["truths"], row["evaluations"] or ""]
        if "w1" in row:
            cells += [
                f"{row['seconds']:.1f}" if row["evaluations"] else "",
                with_error(row["w1"]),
                with_error(row["energy"]),
                f"{row['log_prior'][0]:.1f}",
                with_error(row["gap"], ".1f") if row["evaluations"] else "",
                f"{row['log_likelihood'][0]:.2f}",
                with_error(row["coverage"], ".0%"),
                with_error(row["exact_coverage"], ".0%"),
                f"{row['lost']:.1%}",
            ]
        else:
            cells += ["diverged"] * 9
        lines.append(cells)

    return study.table(head, lines)


# what is drawn, and what an exact method would score
DRAWN = {
    "w1": ("W1 / floor\n", 1.0),
    "energy": ("energy\ndistance", 0.0),
    "gap": ("log prior less the\nfilter's (nats)", 0.0),
    "exact_coverage": ("coverage of the\nfilter's members", 0.9),
}
COSTS = {"evaluations": "evaluations of\nthe score", "seconds": "seconds of\none core"}
STYLES = {"lo": (study.BLUE, "o", -0.16), "hi": (study.ORANGE, "s", 0.16)}


def mark(row: Record, y: int, costs: Sequence[Any], panels: Sequence[Any]) -> None:
    """Marks the costs and scores of a row at a height, each in a panel of its own."""
    setting = row["setting"]
    colour, shape, shift = STYLES[setting]
    style = {"fmt": shape, "ms": 4, "lw": 1, "color": colour, "label": setting}
    for panel, cost in zip(costs, COSTS, strict=True):
        panel.errorbar(row[cost], y + shift, **style)
    for panel, score in zip(panels, DRAWN, strict=True):
        value, error = row[score]
        panel.errorbar(value, y + shift, xerr=error or 0.0, **style)
        if row["name"] == "published":
            line = {"color": colour, "lw": 0.8, "ls": "--", "label": f"published, {setting}"}
            panel.axvline(value, zorder=0, **line)


def draw(rows: Sequence[Record], path: Path) -> None:
    """Draws costs and scores, a line for each recipe; a black line is at what an exact method would
    score, dashed ones at the published recipe's."""
    shown = [r for r in rows if "w1" in r and r["evaluations"]]
    names = list(dict.fromkeys(row["name"] for row in shown))
    figure, axes = study.panels(
        1, len(COSTS) + len(DRAWN), width=1.5, height=1.1 + 0.24 * len(names), sharey=True
    )
    costs, panels = axes[0, : len(COSTS)], axes[0, len(COSTS) :]
    for row in shown:
        mark(row, names.index(row["name"]), costs, panels)

    for panel, label in zip(costs, COSTS.values(), strict=True):
        panel.set(xscale="log", xlabel=label)
    for panel, (label, exact) in zip(panels, DRAWN.values(), strict=True):
        panel.axvline(exact, color="black", lw=0.8, zorder=0, label="an exact method")
        panel.set_xlabel(label)
    for panel in axes[0]:
        panel.grid(axis="y", color="#dddddd", lw=0.6)
        panel.tick_params(axis="y", length=0)
    costs[0].set_yticks(range(len(names)), names)
    costs[0].set_ylim(len(names) - 0.4, -0.6)
    study.legend(figure, costs[0], panels[0], loc="outside upper center", ncols=5)
    figure.savefig(path)


def write_page(page: Path, rows: Sequence[Record]) -> None:
    """Writes the table between its marks in a page, and the figure beside it."""
    before, rest = page.read_text().split(START)
    after = rest.split(END)[1]
    figure = page.with_suffix(".png")
    draw(rows, figure)
    shown = f"{table(rows)}\n\n![Quality against cost]({figure.name})"
    text = f"{before}{START}\n\n{shown}\n\n{END}{after}"
    atomic_write(page, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of posteriors against their cost.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--quick", action="store_true", help="two truths, not the published recipe")
    what.add_argument("--full", action="store_true", help="eight truths: an hour of one core")
    what.add_argument("--page", type=Path, help="the page to write the kept results into")
    parser.add_argument("--out", type=Path, default=Path("runs/front"), help="folder of results")
    parser.add_argument("--keep", action="store_true", help=f"write the means to {RESULTS.name}")
    arguments = parser.parse_args()

    if arguments.page is not None:
        write_page(arguments.page, json.loads(RESULTS.read_text()))
        return

    rows = average(run(arguments.out, QUICK if arguments.quick else FULL))
    atomic_write(arguments.out / "front.md", f"{table(rows)}\n".encode())
    draw(rows, arguments.out / "front.png")
    if arguments.keep:
        atomic_write(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
