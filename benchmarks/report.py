"""Tables and figures of the benchmarks.

    python -m benchmarks.report              run the quick suite
    python -m benchmarks.report --full       run all of it
    python -m benchmarks.report FILE.json    read pytest-benchmark's JSON
    python -m benchmarks.report --docs       write docs/performance.md

The first three print a table and add a file to `benchmarks/results/`. The page is written from the
newest of those that are committed, so that no number is without its file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from . import results
from .results import ROOT, Result, committed, convert, floor, groups, load, save

PAGE = ROOT / "docs" / "performance.md"
QUICK = ("-m", "not slow", "--benchmark-max-time=0.3", "--benchmark-min-rounds=3")
FULL = ("--benchmark-max-time=1", "--benchmark-min-rounds=5")
COLOURS = {"eager": "#9aa5b1", "compiled": "#d1a03b", "native": "#3b6ea8"}
OTHER = ("#7fb069", "#d1622b", "#8a5fa8")

#: The parts of the page: how the titles of their groups begin.
PARTS = {
    "Sampling": ("Lorenz-63",),
    "Score networks": ("mlp", "U-Net"),
    "Training": ("training step",),
    "Before the first sample": ("start of a process",),
}


def run(full: bool) -> dict[str, Any]:
    """Runs the suite and returns pytest-benchmark's JSON: what failed is not in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-only"]
        options = [*(FULL if full else QUICK), f"--benchmark-json={path}", "--benchmark-quiet"]
        code = subprocess.run([*command, *options], cwd=ROOT, check=False).returncode
        if not path.is_file():
            raise SystemExit(code or 1)
        return json.loads(path.read_text())


def seconds(value: float | None) -> str:
    """Writes a time with three digits."""
    if value is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{1e9 * value:.0f} ns"


def ratio(slow: dict[str, Any] | None, fast: dict[str, Any] | None) -> str:
    """Writes how many times faster a case is than another: of the medians, and in brackets of the
    quartiles that lie nearest and farthest."""
    if slow is None or fast is None or slow is fast:
        return ""
    low, high = slow["q1"] / fast["q3"], slow["q3"] / fast["q1"]
    return f"{slow['median'] / fast['median']:.2f} ({low:.2f}-{high:.2f})"


def rows(result: Result) -> Iterator[list[str]]:
    """Yields the rows of the table: a group and what its codes took."""
    for group, codes in groups(result).items():
        own = codes.get("native")
        others = [c for name, c in codes.items() if name not in ("eager", "compiled", "native")]
        best = own or (others or list(codes.values()))[-1]
        least = floor(best, result["floors"])
        share = "" if least is None else f"{least / best['median']:.0%}"
        more = ", ".join(f"{c['code']} {seconds(c['median'])}" for c in others)
        shown = [seconds(codes[n]["median"]) if n in codes else "" for n in COLOURS]
        yield [group, *shown, more, ratio(codes.get("eager"), own), share]


HEAD = ["case", "eager", "compiled", "native", "other", "eager / native", "of the floor"]


def table(result: Result, markdown: bool = False, starts: tuple[str, ...] = ("",)) -> str:
    """Makes the table of the groups whose title begins as asked for."""
    body = [row for row in rows(result) if row[0].startswith(starts)]
    if markdown:
        lines = [HEAD, ["---"] * len(HEAD), *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(HEAD, *body, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
        for line in [HEAD, *body]
    )


def draw(result: Result, starts: tuple[str, ...], path: Path) -> None:
    """Draws the bars of the groups whose title begins as asked for, a group's relative to its
    slowest, with the quartiles and, as a line, the floor."""
    from matplotlib.figure import Figure

    chosen = {g: c for g, c in groups(result).items() if g.startswith(starts)}
    named = dict.fromkeys(code for codes in chosen.values() for code in codes)
    names = sorted(named, key=lambda n: [*COLOURS, n].index(n))
    palette = COLOURS | dict(zip([n for n in names if n not in COLOURS], 3 * OTHER, strict=False))

    bars = sum(len(codes) for codes in chosen.values())
    figure = Figure(
        figsize=(8, 0.9 + 0.2 * bars + 0.15 * len(chosen)), dpi=130, layout="constrained"
    )
    panel = figure.subplots()
    y, ticks = 0.0, []
    for group, codes in chosen.items():
        slowest = max(case["median"] for case in codes.values())
        first = y
        for name in names:
            if name not in codes:
                continue
            case = codes[name]
            value = case["median"] / slowest
            spread = [[value - case["q1"] / slowest], [case["q3"] / slowest - value]]
            panel.barh(y, value, height=0.85, color=palette[name])
            panel.errorbar(value, y, xerr=spread, fmt="none", ecolor="#333333", elinewidth=0.8)
            panel.annotate(
                seconds(case["median"]), (case["q3"] / slowest, y), (6, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
            least = floor(case, result["floors"])
            if least is not None:
                panel.vlines(least / slowest, y - 0.42, y + 0.42, color="black", lw=1.2)
            y += 1
        ticks.append(((first + y - 1) / 2, group.rpartition(" (")[0]))
        y += 0.7

    panel.set_yticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_xlim(left=0)
    panel.set_xlabel(
        "time, relative to the slowest of a group; a black line is the floor", fontsize=8
    )
    panel.tick_params(axis="x", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    for name in names:
        panel.barh(0, 0, color=palette[name], label=name)
    panel.legend(
        ncols=len(names), frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
    )  # fmt: skip
    figure.savefig(path, metadata={"Software": None})


def rates(floors: dict[str, Any]) -> str:
    """Writes the floors."""

    def giga(name: str) -> str:
        return "not measured" if floors[name] is None else f"{floors[name] / 1e9:.0f}"

    return "\n".join(
        [
            "| | one thread | all threads |",
            "|---|---|---|",
            f"| float32 multiply-adds, GFLOP/s | {giga('float32_one')} | {giga('float32')} |",
            f"| bfloat16 products, GFLOP/s | {giga('bfloat16_one')} | {giga('bfloat16')} |",
            f"| copy, read and written, GB/s | {giga('copy_one')} | {giga('copy')} |",
        ]
    )


def page(path: Path) -> str:
    """Makes the page of a result, and draws its figures."""
    result = load(path)
    machine, (before, after) = result["machine"], result["load"]
    threads = machine["threads"]
    busy = max(before, after) > threads + 0.5
    lines = [
        "# Performance",
        "",
        f"Measured on {result['date'][:10]} at commit `{result['commit']}` by {threads} thread"
        f"{'s' * (threads > 1)} of {machine['processor']} ({machine['isa']}), torch "
        f"{machine['torch']}, "
        f"{machine['compiler']}. The numbers are those of "
        f"[{path.name}](../benchmarks/results/{path.name}); `python -m benchmarks.report --docs` "
        "writes this page from it.",
        "",
        f"The machine's load was {before} before the run and {after} after it, which includes the "
        "run's own threads." + (" It was busy: read the ranges, not the medians." if busy else ""),
        "",
        '"Eager" is the reference or the published method in eager PyTorch, "compiled" the same '
        "under `torch.compile`, all on the same tensors in one run and compared before they are "
        "timed. A ratio is that of the medians, with the range of the quartiles.",
        "",
        "The floor of a case is the time that its operations take at the peak rate of its type, "
        'measured in the same run; "of the floor" is the share of that rate which the native code '
        "reached, or where there is none the last one named.",
        "",
        *rates(result["floors"]).splitlines(),
    ]
    for title, starts in PARTS.items():
        if not any(group.startswith(starts) for group in groups(result)):
            continue
        figure = PAGE.with_name(f"performance-{title.lower().replace(' ', '-')}.png")
        draw(result, starts, figure)
        lines += ["", f"## {title}", "", f"![{title}]({figure.name})", ""]
        lines += table(result, True, starts).splitlines()
    lines += [
        "",
        "## How to measure",
        "",
        "`make bench` prints the quick suite by groups; `python -m benchmarks.report` runs it, "
        "prints this table and keeps the numbers. `make bench-full` takes all of it and what a "
        "length costs (`python -m benchmarks.memory`). `python -m benchmarks.compare A B` exits "
        "with 1 where B is slower than A beyond noise. On a machine with a GPU: "
        "`benchmarks/gpu_suite.sh OUT`. Each operator is timed by "
        "`benchmarks/test_operators.py`.",
        "",
    ]
    return "\n".join(line if line.startswith(("|", "!")) else fill(line, 100) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run or read benchmarks, and report them.")
    parser.add_argument("file", type=Path, nargs="?", help="pytest-benchmark's JSON")
    parser.add_argument("--full", action="store_true", help="run the slow cases too")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md only")
    arguments = parser.parse_args()

    if arguments.docs:
        paths = committed()
        if not paths:
            raise SystemExit(f"no result is committed in {results.FOLDER.relative_to(ROOT)}")
        PAGE.write_text(page(paths[-1]))
        return
    content = json.loads(arguments.file.read_text()) if arguments.file else run(arguments.full)
    result = convert(content)
    print(table(result))
    print(f"\n{rates(result['floors'])}\n\nwritten to {save(result).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
