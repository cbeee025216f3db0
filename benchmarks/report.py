"""Tables and figures of the benchmarks.

    python -m benchmarks.report                        run the quick cases
    python -m benchmarks.report --full                 run all of them
    python -m benchmarks.report --full --only unet     of one suite
    python -m benchmarks.report FILE.json              read pytest-benchmark's JSON
    python -m benchmarks.report --docs                 write docs/performance.md

Each suite is a process of its own. When it ends its table is printed and a file added to
`benchmarks/results/`, so that what is interrupted loses one suite at most. The page is written from
the newest committed file that has a suite, so that no number is without its file.
"""

__all__ = ["main", "page", "table"]

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from sda_fast.io import atomic_write

from . import memory, profile, results, targets
from .figures import COLOURS, Groups, draw_bars, draw_scaling
from .gpu.table import profiled, shown
from .results import (
    GPU,
    MEMORY,
    PROFILE,
    ROOT,
    TIMINGS,
    Result,
    committed,
    convert,
    floor,
    groups,
    load,
    save,
)
from .text import DISTURBED, amount, disturbed, rates, rates_in_words, ratio, seconds

PAGE = ROOT / "docs" / "performance.md"
QUICK = ("-m", "not slow", "--benchmark-max-time=0.1", "--benchmark-min-rounds=3")
FULL = ("--benchmark-max-time=0.5", "--benchmark-min-rounds=5")

# The suites, as the page has them, and of the operators which cases it shows.
PARTS = {
    "lorenz63": "Samples of Lorenz-63",
    "flow": "Samples of a flow",
    "small_flow": "Many samples of a small flow",
    "networks": "Window networks",
    "unet": "U-Nets",
    "training": "Training steps",
    "startup": "Before the first sample",
    "operators": "Operators",
}
SHOWN = {"operators": " large float32"}
# Which of them a figure has, where all are too many.
DRAWN = {"lorenz63": ", C = 1 (", "flow": ", C = 1 (", "small_flow": ", C = 1 ("}

PEERS = (
    "Networks are not trained, which takes the same time. "
    '"azula" is the predictor-corrector sampler of that package and "sda" the reference package, '
    "both with the same network in eager PyTorch, as many steps and as many evaluations; "
    '"native, objects of sda" is `sda_fast.sample` given the reference package\'s objects. The '
    "figure has those with one correction a step."
)

# What a reader of a suite's numbers should know.
NOTES = {
    "lorenz63": "A sample is a trajectory of 65 states by a network of width 256 and depth 5 on "
    "windows of 5, in 16 score evaluations or, with C = 16, 17; every eighth state is observed. "
    f"{PEERS} By moments, which is guidance that azula has too, an evaluation takes three products "
    "with the covariance of what is observed.",
    "flow": "A sample is 8 states of two components on a periodic square, in 8 evaluations. "
    f"{PEERS}",
    "small_flow": "The same in 8 or 17 evaluations, and of 256 samples 2 or 17.",
    "networks": "The residual MLP on the 61 windows of B trajectories of 65 states, composed.",
    "unet": "A U-Net on the four windows of a trajectory of 8 states of two components, composed; "
    "over time, one on B trajectories of 65 states. Work is that of direct convolutions, of which "
    "the native ones take, from commit `9ad8474` on, a quarter of the multiplications in float32, "
    "or over time half: they may take less than the floor.",
    "training": 'There are no operators for it: "native" is the step of `sda_fast train`, with the '
    'update of all weights in one pass, and "native compiled" that of `sda_fast train --compile`.',
    "startup": "From the start of a process to its end: importing, or drawing a first sample in "
    'one step. "Compiled" has the compiler\'s time in it, without a cache of earlier runs. No '
    "import takes less than torch's.",
    "operators": "The floor of an operator in place (its name ends in `_`) is by the rate of an "
    "addition in place, of others by that of a copy, which reads what it overwrites without that "
    "being counted. Drawing noise is arithmetic that no floor counts.",
}


def run(suite: str, full: bool, threads: Sequence[int]) -> dict[str, Any]:
    """Runs a suite and returns pytest-benchmark's JSON: what failed is not in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        file = f"benchmarks/test_{suite}.py"
        command = [sys.executable, "-m", "pytest", file, "-q", "--benchmark-only"]
        options = [*(FULL if full else QUICK), f"--benchmark-json={path}", "--benchmark-quiet"]
        if threads:
            options += ["--threads", *map(str, threads)]
        code = subprocess.run([*command, *options], cwd=ROOT, check=False).returncode
        if not path.is_file():
            raise SystemExit(code or 1)
        return json.loads(path.read_text())


HEAD = [
    "case", "eager", "compiled", "native", "other", "eager / native", "compiled / native",
    "work", "floor", "of the floor",
]  # fmt: skip


def rows(chosen: Groups, floors: dict[str, Any]) -> Iterator[list[str]]:
    """Yields the rows of the table: a group and what its codes took."""
    for group, codes in chosen.items():
        own = codes.get("native")
        others = [c for name, c in codes.items() if name not in COLOURS]
        best = own or (others or list(codes.values()))[-1]
        least = floor(best, floors)
        yield [
            group,
            *(seconds(codes[name]["median"]) if name in codes else "" for name in COLOURS),
            ", ".join(_other(case, floors) for case in others),
            ratio(codes.get("eager"), own),
            ratio(codes.get("compiled"), own),
            ", ".join(
                amount(best[n], u) for n, u in (("flops", "FLOP"), ("bytes", "B")) if n in best
            ),
            seconds(least),
            "" if least is None else f"{least / best['median']:.0%}",
        ]


def _other(case: dict[str, Any], floors: dict[str, Any]) -> str:
    """Names a case that has no column, with its share of its own floor if it is native."""
    least = floor(case, floors) if case["code"].startswith("native") else None
    share = "" if least is None else f" ({least / case['median']:.0%})"
    return f"{case['code']} {seconds(case['median'])}{share}"


def table(chosen: Groups, floors: dict[str, Any], markdown: bool = False) -> list[str]:
    """Makes the table of groups, without the columns that are empty."""
    body = list(rows(chosen, floors))
    columns = [
        (name, *column)
        for name, *column in zip(HEAD, *body, strict=True)
        if name == "case" or any(column)
    ]
    if markdown:
        columns = [(name, "---", *column) for name, *column in columns]
        return ["| " + " | ".join(line) + " |" for line in zip(*columns, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]


def part(result: Result, suite: str) -> Groups:
    """Returns the groups of a suite that the page shows."""
    chosen: Groups = {}
    for group, codes in groups(result).items():
        own = {code: case for code, case in codes.items() if case["suite"] == suite}
        if own and SHOWN.get(suite, "") in group:
            chosen[group] = own
    return chosen


def figure(name: str) -> Path:
    return PAGE.with_name(f"performance-{name}.png")


def source(path: Path, result: Result) -> str:
    """Says what was measured where, and from which file."""
    machine, (before, after) = result["machine"], result["load"]
    busy = max(before, after) > machine["threads"] + 0.5
    return (
        f"Measured on {result['date'][:10]} at commit `{result['commit']}`"
        + (", with changes," if result["changed"] else "")
        + f" on {machine['processor']} ({machine['isa']}), torch {machine['torch']}, "
        f"{machine['compiler']}; the numbers are those of "
        f"[{path.name}](../benchmarks/results/{path.name}). The machine's load was {before} before "
        f"and {after} after, which includes the run's own threads."
        + (" **It was busy with other work: these are no more than a first look.**" if busy else "")
    )


def _wrapped(line: str) -> str:
    """Breaks a line of prose between its words, of which links may be long ones."""
    return fill(line, 100, break_long_words=False, break_on_hyphens=False)


def newest(timings: Sequence[Path]) -> list[dict[str, tuple[Path, Result]]]:
    """Returns for each processor, that of most suites first, the last of the files that have what
    the page shows of a suite."""
    found: dict[str, dict[str, tuple[Path, Result]]] = {}
    for path in timings:
        result = load(path)
        of = found.setdefault(result["machine"]["processor"], {})
        of |= {suite: (path, result) for suite in PARTS if part(result, suite)}
    return sorted(found.values(), key=len, reverse=True)


def page(
    timings: Sequence[Path],
    times: Path | None = None,
    lengths: Path | None = None,
    gpu: Path | None = None,
) -> str:
    """Makes the page of files of timings, the oldest first, of where the time goes, of what a
    length costs and of a run on a GPU, and draws its figures."""
    lines = [
        "# Performance",
        "",
        "`python -m benchmarks.report --docs` writes this page and its figures from the newest "
        "files of `benchmarks/results`, on the processor of most of them; what was measured on "
        "another follows.",
        "",
        '"Eager" is the reference or the published method in eager PyTorch, "compiled" the same '
        "under `torch.compile`, all by turns on the same arguments in one process, compared before "
        "they are timed. What one thread does is timed by the processor's time, what several do by "
        "the clock. Times are medians; a ratio is that of the medians, with the range of the "
        f"quartiles. Where these lie apart by a factor of {DISTURBED:g} and more the machine did "
        "something else meanwhile: the range stands alone, and figures leave the case out.",
        "",
        "Work is the operations of matrix products and convolutions, or of operators that have "
        "none the bytes that must be read and written, each once. The floor is what they take at "
        'the machine\'s own rates, measured in the same run; "of the floor" is the share of that '
        "rate which the native code reached, or where there is none the last one named. Other "
        "native codes have theirs in brackets; bfloat16's floor is that of bfloat16 products, "
        "without which native code multiplies in float32.",
    ]
    found, *others = newest(timings)
    lines += targets_section(found)
    if times is not None:
        lines += profile_section(times)
    for suite, title in PARTS.items():
        if suite not in found:
            continue
        path, result = found[suite]
        chosen = part(result, suite)
        drawn = {
            group: codes
            for group, codes in chosen.items()
            if DRAWN.get(suite, "") in group and not disturbed(codes)
            if suite not in DRAWN or "eager" in codes
        }
        draw_bars(drawn or chosen, result["floors"], figure(suite))
        lines += ["", f"## {title}", "", f"![{title}]({figure(suite).name})", ""]
        lines += [f"{source(path, result)} {rates_in_words(result['floors'])}", ""]
        if suite == "lorenz63" and draw_scaling(chosen, figure("batches")):
            lines += [f"![Time and samples at once]({figure('batches').name})", ""]
        if suite in NOTES:
            lines += [NOTES[suite], ""]
        if suite in SHOWN:
            lines += [f"Those of{SHOWN[suite]}; the other sizes and types are in the file.", ""]
        lines += table(chosen, result["floors"], True)
        for other in others:
            lines += elsewhere(suite, *other[suite]) if suite in other else []
    if lengths is not None:
        lines += length_section(lengths)
    if gpu is not None:
        lines += gpu_section(gpu)
    lines += [
        "",
        "## What does not depend on the machine",
        "",
        "`python_tests/test_costs.py` counts, in CI. A sample takes N (1 + C) score evaluations. "
        "With a fused network an evaluation is one operator of ours, and guided by a subsample "
        "six, and a step or a correction is one more. Memory is allocated for what operators "
        "return (one tensor an evaluation, guided six) and by torch's autograd for a callable; "
        "the sampler has none of its own from step to step, and a long run holds no more than a "
        "short one. The instructions that a kernel takes an element are counted by valgrind.",
        "",
        "## How to measure",
        "",
        "`make bench` prints the quick suites by groups; `python -m benchmarks.report` runs them, "
        "prints these tables and keeps the numbers. `make bench-full` takes all of it, in some "
        "hours, what a length costs (`python -m benchmarks.memory`), and where the time goes "
        "(`python -m benchmarks.profile`). "
        "`python -m benchmarks.compare A B` exits with 1 where B is slower than A beyond noise. On "
        "a machine with a GPU: `benchmarks/gpu_suite.sh OUT`.",
        "",
    ]
    return "\n".join(line if line.startswith(("|", "!")) else _wrapped(line) for line in lines)


def elsewhere(suite: str, path: Path, result: Result) -> list[str]:
    """Makes the section of a suite on another processor."""
    return [
        "",
        f"### On {result['machine']['processor']} ({result['machine']['isa']})",
        "",
        f"{source(path, result)} {rates_in_words(result['floors'])}",
        "",
        *table(part(result, suite), result["floors"], True),
    ]


def targets_section(found: dict[str, tuple[Path, Result]]) -> list[str]:
    """Makes the section of what is aimed at."""
    return [
        "",
        "## Aims",
        "",
        'What the project aims at on a CPU, from the sections below. "At the floor" is what the '
        "ratio would be if the processor did nothing but the network's multiply-adds: where the "
        "other code is near the floor itself, no code can be faster by the factor aimed at.",
        "",
        *targets.table({suite: result for suite, (_, result) in found.items()}),
    ]


def profile_section(path: Path) -> list[str]:
    """Makes the section of where the time goes."""
    result = load(path, PROFILE)
    return [
        "",
        "## Where the time goes",
        "",
        "Of calls in a row, each operator without those that it calls, as torch's profiler sees "
        "them. Between operators are Python, autograd and the dispatcher, and the profiler's own "
        f"time, which the time of a call is without. {source(path, result)}",
        "",
        *profile.table(result),
    ]


def length_section(path: Path) -> list[str]:
    """Makes the section of what a length costs, and draws its figure."""
    result = load(path, MEMORY)
    memory.draw(result, figure("length"))
    return [
        "",
        "## Length",
        "",
        f"A step of a posterior sample with one correction, by {result['machine']['threads']} "
        "thread(s): two guided evaluations of the shipped Lorenz-63 prior, every eighth state "
        f"observed; each length in a process of its own. {source(path, result)}",
        "",
        f"![Memory and time against length]({figure('length').name})",
        "",
        *memory.table(result),
        *(line for law in memory.laws(result) for line in ("", law)),
    ]


def gpu_section(path: Path) -> list[str]:
    """Makes the section of a run of `gpu_suite.sh`."""
    result = load(path, GPU)
    timed = {
        group: {code: case for code, case in codes.items() if "median" in case}
        for group, codes in shown(result["cases"]).items()
    }
    machine = result["machine"]
    return [
        "",
        "## On a GPU",
        "",
        f"Measured on {result['date'][:10]} at commit `{result['commit']}` on {machine['device']}, "
        f"torch {machine['torch']}; the numbers are those of "
        f"[{path.name}](../benchmarks/results/{path.name}). By events on the device, medians, over "
        "buffers beyond the cache; of operators the large ones in float32, the others are in the "
        "file.",
        "",
        *table({group: codes for group, codes in timed.items() if codes}, result["floors"], True),
        *(line for text in profiled(result["profile"]) for line in ("", text)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run or read benchmarks, and report them.")
    parser.add_argument("file", type=Path, nargs="?", help="pytest-benchmark's JSON")
    parser.add_argument("--full", action="store_true", help="run the slow cases too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="the suites")
    parser.add_argument("--threads", type=int, nargs="+", default=[], help="by default torch's")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.md only")
    arguments = parser.parse_args()

    if arguments.docs:
        timings, *others = map(committed, (TIMINGS, PROFILE, MEMORY, GPU))
        if not timings:
            raise SystemExit(f"no result is committed in {results.FOLDER.relative_to(ROOT)}")
        text = page(timings, *((paths or [None])[-1] for paths in others))
        atomic_write(PAGE, text.encode())
    elif arguments.file:
        show(json.loads(arguments.file.read_text()))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a suite's process ends with it
        for suite in arguments.only:
            show(run(suite, arguments.full, arguments.threads))


def show(content: dict[str, Any]) -> None:
    """Prints pytest-benchmark's JSON as a table, and keeps it."""
    result = convert(content)
    print("\n".join([*table(groups(result), result["floors"]), "", *rates(result["floors"])]))
    print(f"\nwritten to {save(result).relative_to(ROOT)}\n", flush=True)


if __name__ == "__main__":
    main()
