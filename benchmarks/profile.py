"""Where the time of evaluations and samples goes.

    python -m benchmarks.profile            adds a file to benchmarks/results
    python -m benchmarks.profile --quick    prints the table of a few cases alone

What torch's profiler says of calls in a row, each kind of operator by itself without those that it
calls: native ones; products and convolutions, which are the library's; torch's others, element by
element; and what is between them, which is Python, autograd and the dispatcher. A profiler's own
time counts as that too: the time of a call is told without it.
"""

__all__ = ["PARTS", "attribute", "table"]

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .probe import measure
from .results import PROFILE, ROOT, Result, facts, floor, save, stamp
from .samples import kolmogorov, lorenz63, sampling_work
from .text import amount, seconds
from .turns import Work, is_half, precision
from .workloads import PAPER, mlp_score, time_score, unet_score

PARTS = {
    "native": "native operators",
    "products": "products and convolutions",
    "torch": "torch's others",
    "between": "between them",
}
CODES = ("eager", "native", "native bfloat16")
STEPS = 8


def part(name: str) -> str:
    """Returns which part of the time an event of the profiler is, by its name."""
    if name.startswith("sda_fast::"):
        return "native"
    space, _, operator = name.partition("::")
    if space not in ("aten", "mkldnn"):
        return "between"  # autograd's nodes
    product = any(kind in operator for kind in ("mm", "conv", "linear"))
    return "products" if product else "torch"


def attribute(run: Callable[[], object], least: float = 0.5) -> dict[str, Any]:
    """Returns of calls in a row that take at least so many seconds the median time of one, the
    share of each part of it, and how many operators it calls.

    Arguments:
        run: What is called.
        least: The seconds.
    """
    run()
    times: list[float] = []
    while sum(times) < least or len(times) < 3:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)

    count = min(len(times), 100)  # a profiler keeps every event
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for _ in range(count):
            run()
        whole = 1e6 * (time.perf_counter() - began)

    events = [event for event in profiler.events() if "::" in event.name]
    taken = dict.fromkeys(PARTS, 0.0)
    for event in events:
        taken[part(event.name)] += event.self_cpu_time_total
    taken["between"] = max(whole - sum(taken[name] for name in PARTS if name != "between"), 0.0)
    outermost = [e for e in events if part(e.name) != "between" and not _within_operator(e)]
    return {
        "median": median(times),
        "shares": {name: value / sum(taken.values()) for name, value in taken.items()},
        "operators": len(outermost) / count,
    }


def _within_operator(event: Any) -> bool:
    """Says whether an operator is called by another one."""
    while (event := event.cpu_parent) is not None:
        if "::" in event.name and part(event.name) != "between":
            return True
    return False


def works(quick: bool) -> Iterator[tuple[str, Work]]:
    """Yields what is profiled."""
    for batch in (1,) if quick else (1, 16, 128):
        for kind in ("forward", "vjp"):
            yield f"MLP {kind}, width 256, B = {batch}", mlp_score(batch, 256).work(kind)
    sides = [(32, (32, 64, 128)), (64, (32, 64, 128)), (64, PAPER)]
    for side, channels in sides[: 1 if quick else None]:
        for kind in ("forward", "vjp"):
            title = f"U-Net {channels} {kind}, 4 windows of {side}²"
            yield title, unet_score(side, channels).work(kind)
    for kind in ("forward", "vjp"):
        yield f"U-Net over time (64,) {kind}, B = 1", time_score(1).work(kind)
    for batch in () if quick else (1, 16):
        title = f"Lorenz-63 posterior, B = {batch}, C = 1"
        yield title, sampling_work(lorenz63(), batch, STEPS, 1)
    if not quick:
        title = "flow 32² (32, 64, 128) posterior, B = 1, C = 1"
        yield title, sampling_work(kolmogorov(32), 1, STEPS // 2, 1)


def table(result: Result) -> list[str]:
    """Makes the table of a result."""
    head = ["case", "code", "time", *PARTS.values(), "operators", "work", "of the floor"]
    lines = [head, ["---"] * len(head)]
    for row in result["rows"]:
        least = floor(row, result["floors"])
        lines.append(
            [
                row["group"],
                row["code"],
                seconds(row["median"]),
                *(f"{row['shares'][name]:.0%}" for name in PARTS),
                f"{row['operators']:.0f}",
                amount(row["flops"], "FLOP"),
                "" if least is None else f"{least / row['median']:.0%}",
            ]
        )
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time goes.")
    parser.add_argument("--quick", action="store_true", help="a few cases, and keep nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    before = os.getloadavg()[0]

    rows = []
    for title, work in works(arguments.quick):
        for code in CODES:
            with work.within(), precision(code):
                found = attribute(work.runs[code])
            half = {"bfloat16": True} if is_half(code) else {}
            row = {"group": title, "code": code, "threads": arguments.threads, **found}
            rows.append({**row, "flops": work.flops, **half})
            print(rows[-1], file=sys.stderr, flush=True)
    result = {
        **stamp(PROFILE, facts("cpu", arguments.threads), before),
        "floors": asdict(measure("cpu")),
        "rows": rows,
    }
    print("\n".join(table(result)))
    if not arguments.quick:
        print(f"\nwritten to {save(result).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
