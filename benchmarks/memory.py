"""What a long trajectory takes: peak resident memory and time against its length.

    python -m benchmarks.memory [--out memory.json] [--plot memory.png] [--lengths 1000 10000]

A guided step of one sample, by the shipped Lorenz-63 prior, every eighth state observed. Each
length runs in a process of its own, since a peak is the process's. The row of length 0 is that of a
process which has only imported the package.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sda_fast import VPSDE, GaussianScore, load_prior, sample
from sda_fast.io import atomic_write
from sda_fast.observation import Subsample

LENGTHS = (1_000, 10_000, 100_000, 1_000_000)


def measure(length: int) -> dict[str, Any]:
    """Measures a length, in this process."""
    seconds = 0.0
    if length > 0:
        prior = load_prior("lorenz63", length=length)
        A = Subsample(prior.shape, slice(None, None, 8), slice(0, 1))
        guided = GaussianScore(torch.zeros(A.shape), A, std=1.0, sde=prior, gamma=1.0)
        began = time.perf_counter()
        sample(VPSDE(guided, prior.shape), steps=1)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"length": length, "seconds": seconds, "peak_MB": peak}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws memory and time against the length."""
    from matplotlib.figure import Figure

    base, *rows = rows
    lengths = [row["length"] for row in rows]
    figure = Figure(figsize=(8, 3), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(lengths, [row["peak_MB"] for row in rows], "o-", color="#3b6ea8", ms=4)
    left.axhline(base["peak_MB"], color="#9aa5b1", lw=1, label="after the import")
    left.set_ylabel("peak resident MB")
    left.set_ylim(0)
    left.legend(frameon=False, fontsize="small")
    right.loglog(lengths, [row["seconds"] for row in rows], "o-", color="#3b6ea8", ms=4)
    right.set_ylabel("seconds a guided step")
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_xlabel("states")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time against length.")
    parser.add_argument("--length", type=int, help="one length, in this process")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--plot", type=Path, help="the figure to write")
    arguments = parser.parse_args()

    if arguments.length is not None:
        print(json.dumps(measure(arguments.length)))
        return

    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| states | seconds a guided step | peak resident MB |\n|---|---|---|", flush=True)
    rows = []
    for length in (0, *arguments.lengths):
        command = [sys.executable, "-m", "benchmarks.memory", "--length", str(length)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
        print(f"| {length:,} | {rows[-1]['seconds']:.2f} | {rows[-1]['peak_MB']:.0f} |", flush=True)

    content = {"format": "sda_fast memory 1", "threads": torch.get_num_threads(), "rows": rows}
    if arguments.out is not None:
        atomic_write(arguments.out, (json.dumps(content, indent=1) + "\n").encode())
    if arguments.plot is not None:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
