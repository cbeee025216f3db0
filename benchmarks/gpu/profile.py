"""Profiles guided steps: kernels a step, how long they run, and how long the device waits.

    python -m benchmarks.gpu.profile --out profile.json [--device cpu]

The difference of two runs of different length is what a step takes, without what is done once. On
the CPU the operators that torch calls are counted in place of kernels.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sda_fast import VPSDE, GaussianScore, sample
from sda_fast.observation import Subsample

from ..workloads import LENGTH, OBSERVED, STATE, make_network, mlp_arguments

STEPS = (8, 24)  # with a correction each enough evaluations to be captured, in both runs


def trace(sde: Any, batch: int, steps: int, device: str) -> dict[str, Any]:
    """Profiles a run, with one correction a step."""
    activities = [ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(ProfilerActivity.CUDA)

    def run() -> None:
        sample(sde, (batch,), steps=steps, corrections=1, tau=0.5, seed=1)
        if device != "cpu":
            torch.cuda.synchronize()

    run()
    with profile(activities=activities) as profiler:
        run()

    kind = DeviceType.CPU if device == "cpu" else DeviceType.CUDA
    events = [e for e in profiler.events() if e.device_type == kind]
    if device == "cpu":
        events = [e for e in events if "::" in e.name and e.cpu_parent is None]
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in events)

    busy = waiting = 0.0
    end = spans[0][0] if spans else 0.0
    for start, stop, _ in spans:
        waiting += max(0.0, start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    times: Counter[str] = Counter()
    for start, stop, name in spans:
        times[name] += stop - start
    copies = sum("memcpy" in name.lower() for *_, name in spans)
    return {
        "count": len(spans) - copies,
        "copies": copies,
        "busy_us": busy,
        "waiting_us": waiting,
        "times": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Profile guided steps.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = arguments.device
    few, many = STEPS if device != "cpu" else (2, 4)

    rows = []
    for batch in (1, 16, 256) if device != "cpu" else (2,):
        network = make_network(mlp_arguments(256 if device != "cpu" else 16), device)
        prior = VPSDE(network, shape=(LENGTH, STATE)).to(device)
        A = Subsample((LENGTH, STATE), *OBSERVED).to(device)
        y = torch.randn(9, 1, device=device)
        sde = VPSDE(GaussianScore(y, A, 0.05, prior, gamma=3e-2), prior.shape).to(device)

        a, b = (trace(sde, batch, steps, device) for steps in (few, many))
        row = {
            key: (b[key] - a[key]) / (many - few)
            for key in ("count", "copies", "busy_us", "waiting_us")
        }
        row["longest"] = [(name[:90], us / many) for name, us in b["times"].most_common(8)]
        rows.append({"batch": batch, "corrections": 1, **row})
        print(
            f"B = {batch}: {row['count']:.1f} kernels and {row['copies']:.1f} copies a step, "
            f"{row['busy_us']:.0f} us busy, {row['waiting_us']:.0f} us waiting"
        )
        for name, us in row["longest"]:
            print(f"  {us:9.1f} us  {name}")

    arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
