"""What the studies share: cells that are evaluated one by one and kept, tables, figures, a command.

A study is a list of cells, frozen dataclasses of numbers and strings, and a function that evaluates
one. A cell's result is written to disk as soon as it is known, so that a run that is repeated with
the same folder goes on where it ended.
"""

import argparse
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import stdev
from typing import Any

from sda_fast.io import atomic_write

Record = dict[str, Any]

# those of Okabe & Ito (2008), which the colour-blind tell apart, too
BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a8a8a"
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#e69f00", "#56b4e9", GREY)

# figures of at most 9 inches are shown as large as they are, so that this is to be read
LEGEND: dict[str, Any] = {"fontsize": "small", "frameon": False}

# scores that are shares of one
SHARES = ("coverage", "lost")

# scores that are differences from the floor of the same truth
DIFFERENCES = ("above",)


def evaluate_all(
    log: Path, cells: Sequence[Any], evaluate: Callable[[Any], Record]
) -> list[Record]:
    """Evaluates the cells that the log does not hold yet, and returns the records of all.

    Arguments:
        log: The file of records, one JSON object a line.
        cells: The cells, instances of one dataclass.
        evaluate: A function from a cell to its numbers. What it raises as `FloatingPointError` is
            recorded as an "error".
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines() if log.exists() else []
    names = list(asdict(cells[0]))

    def key(record: Record) -> str:
        return json.dumps([record.get(name) for name in names])

    done = {key(record): record for record in map(json.loads, lines)}
    for i, cell in enumerate(cells, start=1):
        record = asdict(cell)
        if key(record) in done:
            continue
        try:
            record |= evaluate(cell)
        except FloatingPointError as error:
            record["error"] = str(error)
        lines.append(json.dumps(record))
        done[key(record)] = json.loads(lines[-1])
        atomic_write(log, "".join(f"{line}\n" for line in lines).encode())
        print(f"{i}/{len(cells)} {lines[-1][:400]}", flush=True)

    # a record may be older than a field that is None, as its cell says
    return [asdict(cell) | done[key(asdict(cell))] for cell in cells]


def group(records: Sequence[Record], names: Sequence[str]) -> dict[tuple[Any, ...], list[Record]]:
    """Groups records by some of their fields, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)

    return groups


def numbers(records: Sequence[Record], name: str) -> list[float]:
    """Returns a number of all records that have it."""
    return [record[name] for record in records if record.get(name) is not None]


def mean(records: Sequence[Record], name: str) -> float | None:
    """Returns the mean of a number over the records that have it, or None."""
    values = numbers(records, name)
    return sum(values) / len(values) if values else None


def standard_error(records: Sequence[Record], name: str) -> float | None:
    """Returns the standard error of :func:`mean`, or None of fewer than two records."""
    values = numbers(records, name)
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def average(
    records: Sequence[Record], names: Sequence[str], metrics: Iterable[str]
) -> list[Record]:
    """Returns the means of records that agree in some fields, the standard errors of those of
    :data:`DIFFERENCES`, how many truths they are of, and how many of them diverged."""
    rows = []
    for values, members in group(records, names).items():
        row: Record = dict(zip(names, values, strict=True))
        row |= {"truths": len(members), "diverged": sum("error" in r for r in members)}
        row |= {metric: mean(members, metric) for metric in metrics}
        rows.append(row | {f"{m} error": standard_error(members, m) for m in DIFFERENCES})

    return rows


def number(x: float | None) -> str:
    """Writes a number with three significant digits."""
    if x is None:
        return "–"
    return f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}" if abs(x) < 1e4 else f"{x:.3g}"


def percent(x: float | None) -> str:
    """Writes a share."""
    return "–" if x is None else f"{x:.0%}"


def scores(row: Record, metrics: Iterable[str]) -> list[str]:
    """Writes a row's scores, those of :data:`SHARES` as shares, of :data:`DIFFERENCES` with their
    errors."""

    def score(metric: str) -> str:
        if metric in SHARES:
            return percent(row[metric])
        error = row[f"{metric} error"] if metric in DIFFERENCES else None
        return number(row[metric]) if error is None else f"{number(row[metric])} ± {number(error)}"

    return [score(metric) for metric in metrics]


def method(row: Record) -> str:
    """Names the method of a row of :func:`average`, and says how often it diverged."""
    failed = f" ({row['diverged']} of {row['truths']} diverged)" if row["diverged"] else ""
    return f"{row['method']}{failed}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Writes a table in Markdown."""

    def line(row: Sequence[Any]) -> str:
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"

    return "\n".join((line(head), "|---" * len(head) + "|", *map(line, rows)))


def panels(rows: int, columns: int, *, width: float = 3.2, height: float = 2.6, **options: Any):
    """Makes a figure, and its panels in an array (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize="small")
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set_size(9)

    return figure, axes


def shades(count: int) -> list[Any]:
    """Returns colours from dark to light, for values in order."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(count - 1, 1)) for i in range(count)]


def legend(figure: Any, *panels: Any, **options: Any) -> None:
    """Writes a figure's legend, of what some of its panels show, each name once."""
    shown = [panel.get_legend_handles_labels() for panel in panels]
    named = {name: handle for pair in shown for handle, name in zip(*pair, strict=True)}
    figure.legend(named.values(), named.keys(), **LEGEND | options)


def plain_ticks(axis: Any, values: Sequence[float] | None = None) -> None:
    """Writes plain numbers at values of a logarithmic axis, or at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    axis.set_major_locator(FixedLocator(values) if values else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def write(out: Path, name: str, text: str, figure: Any = None) -> str:
    """Writes a study's tables, NAME.md, and its figure, NAME.png, and returns the tables."""
    atomic_write(out / f"{name}.md", f"{text}\n".encode())
    if figure is not None:
        image = io.BytesIO()
        figure.savefig(image, format="png")
        atomic_write(out / f"{name}.png", image.getvalue())

    return text


def command(
    description: str, run: Callable[[Path, Any, str], str], quick: Any, full: Any, out: str
) -> None:
    """Runs a study from the command line and prints its tables.

    Arguments:
        description: What it is about.
        run: A function of the folder, the profile and the device that returns the tables.
        quick: The profile of a few minutes, to see all of it run.
        full: The profile that the pages show.
        out: The folder by default.
    """
    parser = argparse.ArgumentParser(description=description)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="a part of it, in minutes on two cores")
    size.add_argument("--full", action="store_true", help="all of it, as on the page")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of results")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    profile = quick if arguments.quick else full
    print("\n" + run(arguments.out, profile, arguments.device))
