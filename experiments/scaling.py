r"""How time and memory grow with k, C, the number of samples and the size of a state.

    python -m experiments.scaling --full --out runs/scaling

A guided step of the sampler, every 8th state observed, by an untrained network (what it costs does
not depend on its weights): the paper's residual MLP, of width 256 and depth 5, and for fields a
U-Net. One quantity varies at a time about

    L = 65, B = 32, k = 2, C = 1, D = 3        for vectors,
    L = 9, B = 1, k = 1, C = 1, 2 x 32 x 32     for fields.

Each case runs in a process of its own on one thread: the least processor time of three steps, which
other work on the machine hardly changes, and the peak of resident memory above what was resident
before the first. The exponents are slopes of a straight line through the logarithms of the last
three cases. How both grow with the length L is what `python -m benchmarks.memory` measures.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sda_fast import VPSDE, GaussianScore, MCScoreNet, sample

from . import study
from .study import Record, number


@dataclass(frozen=True)
class Cell:
    """A guided step. With `side` the state is a field of 2 x side x side, else D numbers."""

    varied: str
    L: int = 65
    B: int = 32
    k: int = 2
    C: int = 1
    D: int = 3
    side: int = 0


@dataclass(frozen=True)
class Profile:
    """The values of each quantity."""

    k: Sequence[int]
    C: Sequence[int]
    B: Sequence[int]
    D: Sequence[int]
    side: Sequence[int]


FULL = Profile(
    k=(1, 2, 4, 8, 16),
    C=(0, 1, 3, 7),
    B=(8, 16, 32, 64, 128),
    D=(3, 12, 48, 192),
    side=(16, 32, 64),
)
QUICK = Profile(k=(1, 2, 4), C=(0, 1, 3), B=(8, 16, 32), D=(3, 12, 48), side=(16, 32))
REPEATS = 3


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for name in ("k", "C", "B", "D"):
        for value in getattr(profile, name):
            yield Cell(name, **{name: value})
    for side in profile.side:
        yield Cell("side", L=9, B=1, k=1, D=2, side=side)


def measure(cell: Cell) -> Record:
    """Times a guided step, and measures the memory that it takes, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options: dict[str, Any] = {"order": cell.k, "activation": nn.SiLU}
    if cell.side:
        options |= {"spatial": 2, "hidden_channels": (32, 64), "hidden_blocks": (1, 1)}
        options |= {"kernel_size": 3, "padding_mode": "circular"}
    else:
        options |= {"hidden_features": [256] * 5, "embedding": 32}
    network = MCScoreNet(cell.D, **options).requires_grad_(False)

    shape = (cell.L, cell.D, *(2 * (cell.side,) if cell.side else ()))
    prior = VPSDE(network, shape=shape)
    y = torch.zeros(len(range(0, cell.L, 8)), 1, *shape[2:])
    guided = GaussianScore(y, lambda x: x[:, ::8, :1], 1.0, prior, gamma=1.0)
    sde = VPSDE(guided, shape)

    before = peak()
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        # from late on, where an untrained network keeps the state finite
        sample(sde, (cell.B,), steps=[0.2, 0.1], corrections=cell.C, tau=0.1, seed=0)
        seconds.append(time.process_time() - began)

    return {"seconds": min(seconds), "megabytes": (peak() - before) / 1024}


def peak() -> int:
    """Returns the greatest resident memory of this process so far, in KiB. What `getrusage` says
    of a process begins with its parent's, and that of a report is large."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def evaluate(cell: Cell) -> Record:
    """Measures a cell in a process of its own."""
    command = [sys.executable, "-m", "experiments.scaling", "--cell", json.dumps(asdict(cell))]
    result: Record = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def value(record: Record) -> int:
    """Returns what varies: for C the number of score evaluations, for fields that of cells."""
    name = record["varied"]
    if name == "C":
        return 1 + int(record["C"])
    return int(record["side"] ** 2 if name == "side" else record[name])


def exponent(records: Sequence[Record], name: str) -> float | None:
    """Fits a power of the varied quantity to the last three records."""
    points = [(value(r), r[name]) for r in records[-3:]]
    if min(y for _, y in points) <= 0:
        return None
    x, y = (torch.tensor([math.log(p[i]) for p in points], dtype=torch.float64) for i in (0, 1))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


LABELS = {"k": "k", "C": "1 + C", "B": "B", "D": "D", "side": "cells of a field"}

# what the figure has of each quantity, and of what was measured, in a unit of so many
QUANTITIES = {
    "k": "order of windows k",
    "C": "evaluations\na step, 1 + C",
    "B": "samples B",
    "D": "numbers\nin a state D",
    "side": "cells of a field",
}
MEASURED = {
    "seconds": ("time of a step (ms)", 1000),
    "megabytes": ("memory above\nthe start (MB)", 1),
}


def tables(records: Sequence[Record]) -> str:
    """Writes times, memories and exponents."""
    rows = []
    for (name,), group in study.group(records, ("varied",)).items():
        rows.append(
            (
                LABELS[name],
                ", ".join(str(value(r)) for r in group),
                ", ".join(number(1000 * r["seconds"]) for r in group),
                number(exponent(group, "seconds")),
                ", ".join(number(r["megabytes"]) for r in group),
                number(exponent(group, "megabytes")),
            )
        )

    head = ["", "values", "ms of a step", "exponent", "MB above the start", "exponent"]
    return study.table(head, rows)


def draw_figure(records: Sequence[Record]) -> Any:
    """Draws time and memory against each quantity in a column of its own, with the exponents."""
    groups = study.group(records, ("varied",))
    figure, axes = study.panels(
        2, len(groups), width=9 / len(groups), height=2.1, sharex="col", sharey="row"
    )
    for column, ((varied,), group) in zip(axes.T, groups.items(), strict=True):
        x = [value(r) for r in group]
        for panel, (name, (_, scale)) in zip(column, MEASURED.items(), strict=True):
            panel.loglog(x, [scale * r[name] for r in group], "o-", color=study.BLUE, ms=4)
            panel.margins(y=0.25)
            panel.set_title(f"exponent {number(exponent(group, name))}", fontsize="small")
        column[-1].set_xlabel(QUANTITIES[varied])
        study.plain_ticks(column[-1].xaxis, x)
    for panel, (label, _) in zip(axes[:, 0], MEASURED.values(), strict=True):
        panel.set_ylabel(label)
        study.plain_ticks(panel.yaxis)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Measures what the folder does not hold yet, writes table and figure, returns the table."""
    records = study.evaluate_all(out / "scaling.jsonl", list(cells(profile)), evaluate)
    return study.write(out, "scaling", tables(records), draw_figure(records))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args()
    if arguments.cell is not None:
        print(json.dumps(measure(Cell(**json.loads(arguments.cell)))))
    else:
        study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/scaling")
