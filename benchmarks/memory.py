"""What a long trajectory takes: peak memory and time against its length.

    python -m benchmarks.memory            up to 1,000,000 states; adds a file to benchmarks/results
    python -m benchmarks.memory --quick    up to 10,000 states; prints the table alone

Two guided steps with a correction each of one sample, by the shipped Lorenz-63 prior, every eighth
state observed; and the same in eager PyTorch and by torch.compile, as long as their memory allows.
Each length runs in a process of its own, since a peak is the process's; a compiler's own memory is
in it. The compiler's time is not: what is timed has run once before.
"""

__all__ = ["EAGER", "LENGTHS", "draw", "exponent", "measure", "table"]

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.study import plain_ticks
from sda_fast import VPSDE, GaussianScore, load_prior, sample
from sda_fast.observation import Subsample

from .figures import COLOURS
from .published import Composed, Guided, posterior
from .results import MEMORY, ROOT, Result, facts, save, stamp

SHORT = 65  # the paper's length: what it takes is there whatever the length
LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
EAGER = 100_000  # the longest trajectory in eager PyTorch and compiled: some GB
CODES = ("native", "eager", "compiled")
STEPS, CORRECTIONS = 2, 1
ROUNDS, ENOUGH = 5, 20.0  # so many runs, or so many seconds of them


def run(code: str, length: int, device: str) -> None:
    """Draws a sample of the posterior."""
    prior = load_prior("lorenz63", length=length).to(device)
    A = Subsample(prior.shape, slice(None, None, 8), slice(0, 1)).to(device)
    y = torch.zeros(A.shape, device=device)
    if code == "native":
        guided = GaussianScore(y, A, std=1.0, sde=prior, gamma=1.0)
        sample(VPSDE(guided, prior.shape).to(device), (1,), None, STEPS, CORRECTIONS)
    else:
        composed: Any = Composed(prior.eps.kernel, prior.eps.order)
        if code == "compiled":
            composed = torch.compile(composed, dynamic=False)
        inner = VPSDE(composed, prior.shape).to(device)
        eps = Guided(y, lambda x: x[:, ::8, :1], 1.0, inner, 1.0)
        with torch.device(device):
            posterior(VPSDE(eps, prior.shape).to(device), (1,), STEPS, CORRECTIONS)
    if device == "cuda":
        torch.cuda.synchronize()


def measure(code: str, length: int, device: str) -> dict[str, Any]:
    """Measures a length, in this process."""
    row: dict[str, Any] = {"code": code, "length": length}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    run(code, length if code == "compiled" else SHORT, device)  # warm-up
    times: list[float] = []
    while len(times) < ROUNDS and sum(times) < ENOUGH:
        began = clock()
        run(code, length, device)
        times.append(clock() - began)
    row["seconds"] = median(times) / STEPS
    row["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        row["device"] = torch.cuda.max_memory_allocated()
    return row


def measure_alone(code: str, length: int, device: str, threads: int) -> dict[str, Any]:
    """Measures a length, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", code, str(length)]
    command += ["--device", device, "--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout)


def exponent(lengths: list[float], values: list[float]) -> float:
    """Returns the exponent p of the power law c length^p that fits best, in logarithms."""
    x, y = ([math.log(n) for n in numbers] for numbers in (lengths, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def of_code(result: Result, code: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["code"] == code]


def laws(result: Result) -> list[str]:
    """Says how time and memory grow: by the upper half of the lengths."""
    lines = []
    for code in CODES:
        known = of_code(result, code)
        rows = known[1:][len(known[1:]) // 2 :]
        if len(rows) < 2:
            continue
        lengths = [row["length"] for row in rows]
        grown = [max(row["resident"] - known[0]["resident"], 1) for row in rows]
        time = exponent(lengths, [row["seconds"] for row in rows])
        per_state = (rows[-1]["resident"] - rows[0]["resident"]) / (lengths[-1] - lengths[0])
        lines.append(
            f"From {lengths[0]:,} to {lengths[-1]:,} states, {code}: time grows as "
            f"L^{time:.2f}, memory above that of {SHORT} states as "
            f"L^{exponent(lengths, grown):.2f}, by {per_state:,.0f} bytes a state."
        )
    return lines


def table(result: Result) -> list[str]:
    """Makes the table of a result."""
    rows = {code: {row["length"]: row for row in of_code(result, code)} for code in CODES}
    codes = [code for code in CODES if rows[code]]
    what = {"seconds": ("s a step", 1, ".3g"), "resident": ("peak MB", 1e6, ",.0f")}
    if all("device" in row for row in result["rows"]):
        what["device"] = ("device, peak MB", 1e6, ",.0f")
    columns = [(code, name) for name in what for code in codes]

    def cell(length: int, code: str, name: str) -> str:
        _, scale, form = what[name]
        row = rows[code].get(length)
        return format(row[name] / scale, form) if row else ""

    lines = [["states", *(f"{code}, {what[name][0]}" for code, name in columns)]]
    lines += [["---"] * len(lines[0])]
    lines += [[f"{n:,}", *(cell(n, *column) for column in columns)] for n in rows["native"]]
    return ["| " + " | ".join(line) + " |" for line in lines]


def draw(result: Result, path: Path) -> None:
    """Draws memory and time against the length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    panels = dict(zip(("resident", "seconds"), figure.subplots(1, 2), strict=True))
    for code, colour in COLOURS.items():
        rows = of_code(result, code)
        if not rows:
            continue
        for name, scale in (("resident", 1e6), ("seconds", 1)):
            values = [row[name] / scale for row in rows]
            lengths = [row["length"] for row in rows]
            panels[name].loglog(lengths, values, "o-", color=colour, ms=4, label=code)
    panels["resident"].set_ylabel("peak resident memory (MB)", fontsize=9)
    panels["seconds"].set_ylabel("time of a guided step (s)", fontsize=9)
    plain_ticks(panels["resident"].yaxis)
    for panel in panels.values():
        panel.set_xlabel("states of a trajectory", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels["seconds"].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time against length.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--quick", action="store_true", help="short lengths, and keep nothing")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", nargs=2, metavar=("CODE", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device, threads = arguments.device, arguments.threads
    torch.set_num_threads(threads)

    if arguments.one is not None:
        code, length = arguments.one
        print(json.dumps(measure(code, int(length), device)))
        return

    before = os.getloadavg()[0]
    lengths = [n for n in arguments.lengths if n <= 10_000 or not arguments.quick]
    cases = [(code, n) for code in CODES for n in (SHORT, *lengths)]
    cases = [(code, n) for code, n in cases if code == "native" or n <= EAGER]
    rows = []
    for code, length in cases:
        rows.append(measure_alone(code, length, device, threads))
        print(rows[-1], file=sys.stderr, flush=True)
    result = {**stamp(MEMORY, facts(device, threads), before), "rows": rows}
    print("\n".join([*table(result), "", *laws(result)]))
    if not arguments.quick:
        print(f"\nwritten to {save(result).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
