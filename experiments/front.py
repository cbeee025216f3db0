r"""Quality against cost: posteriors of Lorenz-63 by the published recipe and by this package's.

    python -m experiments.front --quick --out runs/front
    python -m experiments.front --page docs/front.md

The cases, the particle filter that they are compared with and the scores are those of
:mod:`experiments.lorenz.cases`. Each way of sampling is a recipe: the published one, the
junction rule with even steps, each further ingredient alone, and the presets of
:mod:`sda_fast.presets`. W1 is given over that of a second, independent run of the particle filter,
an exact method's score, and seconds are those of the processor.

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
from pathlib import Path
from typing import Any

import torch

from experiments.lorenz.cases import LENGTH, Case, chain, filtered, guide, make_case, measure
from experiments.lorenz.posterior import SETTINGS
from sda_fast import VPSDE, Junction, Recipe, load_prior, preset, sample
from sda_fast.evaluation import wasserstein
from sda_fast.io import atomic_write

RESULTS = Path(__file__).with_suffix(".json")
START, END = "<!-- python -m experiments.front -->", "<!-- end -->"

JUNCTION = Junction(window=9, stride=4)
EVEN = Recipe("junction, even steps", JUNCTION, 64, 1, 0.5)


def ingredients() -> Iterator[tuple[str, str, Recipe]]:
    """Lists names, priors and recipes."""
    yield "draft", "lorenz63-w9", preset("draft")
    yield "fast", "lorenz63-w9", preset("fast")
    yield EVEN.name, "lorenz63-w9", EVEN

    grid = tuple(0.9 * (1 - n / 64) ** 2 for n in range(65))
    shrinking = tuple(0.5 if t > 0.02 else 0.125 for t in torch.linspace(1, 0, 65)[1:].tolist())
    mid = tuple(2 * int(t < 0.5) for t in torch.linspace(1, 0, 65)[1:].tolist())
    for name, change in (
        ("+ quadratic grid from 0.9", {"steps": grid}),
        ("+ corrections below 0.5 only, twice", {"corrections": mid}),
        ("+ a smaller tau at the end", {"tau": shrinking}),
        ("+ clip", {"clip": 5.0}),
    ):
        yield name, "lorenz63-w9", replace(EVEN, **change)

    yield "fast, no clip", "lorenz63-w9", replace(preset("fast"), clip=None)
    yield "fast, centre", "lorenz63-w9", replace(preset("fast"), composition="centre")
    yield "accurate", "lorenz63-w9", preset("accurate")
    yield "published", "lorenz63", preset("published")


@dataclass(frozen=True)
class Profile:
    """What is run, and whether the published recipe, which takes most of the time, is."""

    truths: int
    members: int
    published: bool


QUICK = Profile(truths=2, members=32, published=False)
FULL = Profile(truths=4, members=64, published=True)


def evaluate(
    setting: str, truth: int, members: int, prior_name: str, recipe: Recipe
) -> dict[str, Any]:
    """Samples one posterior and scores it."""
    instrument = SETTINGS[setting]
    case = make_case(instrument, truth, members)
    prior = load_prior(prior_name, length=LENGTH, composition=recipe.composition)
    guided = guide(case, instrument, prior)

    began = time.process_time()
    x = sample(VPSDE(guided, prior.shape), (members,), seed=truth, **recipe.options)
    seconds = time.process_time() - began

    scores = measure(chain.postprocess(x), case)
    return {"floor": floor(case, truth, members), "seconds": seconds, **scores}


def floor(case: Case, truth: int, members: int) -> float:
    """Returns the distance of a second run of the particle filter from the first."""
    return wasserstein(filtered(case.observation, 2, truth, members), case.reference)


def run(out: Path, profile: Profile) -> list[dict[str, Any]]:
    """Evaluates what the folder does not hold yet; returns all records, in order."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "front.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    done = {key(record): record for record in map(json.loads, lines)}
    wanted = []

    for name, prior_name, recipe in ingredients():
        if name == "published" and not profile.published:
            continue
        for truth in range(profile.truths):
            for setting in SETTINGS:
                cell = {
                    "name": name,
                    "setting": setting,
                    "truth": truth,
                    "members": profile.members,
                    "evaluations": recipe.evaluations,
                }
                wanted.append(cell)
                if key(cell) in done:
                    continue
                try:
                    scores = evaluate(setting, truth, profile.members, prior_name, recipe)
                except FloatingPointError as error:
                    scores = {"error": str(error)}
                done[key(cell)] = cell | scores
                lines.append(json.dumps(cell | scores))
                atomic_write(log, "".join(f"{line}\n" for line in lines).encode())
                print(lines[-1], flush=True)

    return [done[key(cell)] for cell in wanted]


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("name", "setting", "truth", "members", "evaluations"))


def average(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the means over truths, with the standard error of W1 over the floor."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["setting"], record["name"]), []).append(record)

    rows = []
    for (setting, name), group in groups.items():
        good = [record for record in group if "error" not in record]
        row = {"setting": setting, "name": name, "evaluations": group[0]["evaluations"]}
        row |= {"truths": len(group), "diverged": len(group) - len(good)}
        ratios = torch.tensor([r["w1"] / r["floor"] for r in good], dtype=torch.float64)
        if good:
            error = float(ratios.std()) / math.sqrt(len(good)) if len(good) > 1 else None
            row |= {"w1": float(ratios.mean()), "error": error}
            for metric in ("energy", "log_prior", "log_likelihood", "coverage", "lost", "seconds"):
                row[metric] = sum(r[metric] for r in good) / len(good)
        rows.append(row)

    return sorted(rows, key=lambda row: list(SETTINGS).index(row["setting"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Writes rows as Markdown."""
    head = (
        "| | | truths | evaluations | seconds | W1 / floor | energy | log prior | log likelihood "
    )
    lines = [head + "| coverage | lost |", "|---" * 11 + "|"]
    for row in rows:
        cells = [row["setting"], row["name"], row["truths"], row["evaluations"]]
        if "w1" in row:
            error = "" if row["error"] is None else f" ± {row['error']:.2f}"
            cells += [
                f"{row['seconds']:.1f}",
                f"{row['w1']:.2f}{error}",
                f"{row['energy']:.2f}",
                f"{row['log_prior']:.1f}",
                f"{row['log_likelihood']:.2f}",
                f"{row['coverage']:.0%}",
                f"{row['lost']:.1%}",
            ]
        else:
            cells += ["diverged"] * 7
        lines.append(f"| {' | '.join(map(str, cells))} |")

    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws W1 over the floor against evaluations and against seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(len(SETTINGS), 2, sharey="row", squeeze=False)
    for line, setting in zip(axes, SETTINGS, strict=True):
        for ax, cost in zip(line, ("evaluations", "seconds"), strict=True):
            for row in rows:
                if row["setting"] == setting and "w1" in row:
                    error = row["error"] or 0.0
                    ax.errorbar(row[cost], row["w1"], error, fmt="o", label=row["name"])
            ax.axhline(1, color="black", linewidth=0.8)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel(cost)
        line[0].set_ylabel(f"{setting}: W1 / floor")
    axes[0, 1].legend(fontsize="xx-small")
    figure.savefig(path, dpi=120)


def write_page(page: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the table between its marks in a page, and the figure beside it."""
    before, rest = page.read_text().split(START)
    after = rest.split(END)[1]
    figure = page.with_suffix(".png")
    draw(rows, figure)
    text = f"{before}{START}\n\n{table(rows)}\n\n![W1 against cost]({figure.name})\n\n{END}{after}"
    atomic_write(page, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of posteriors against their cost.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--quick", action="store_true", help="two truths, 32 members")
    what.add_argument("--full", action="store_true", help="four truths, 64 members: hours")
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
