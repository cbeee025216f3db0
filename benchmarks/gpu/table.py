"""Gathers what the parts of `gpu_suite.sh` wrote: one JSON file, and a short table.

python -m benchmarks.gpu.table STATE OUT.json
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from sda_fast import _native

from ..results import GPU, facts, floor, stamp


def read(path: Path) -> Any:
    """Reads what a part wrote, or None where it did not come so far."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def scaled(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:,.1f}"


def shown(cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the cases by group and code; of the operators the large ones in float32, which are
    what a floor is for."""
    groups: dict[str, dict[str, Any]] = {}
    for case in cases:
        *_, size, dtype = ("", *case["group"].split(", "))
        if size not in ("small", "medium", "one") and dtype != "bfloat16":
            groups.setdefault(case["group"], {})[case["code"]] = case
    return groups


def table(cases: list[dict[str, Any]], floors: dict[str, Any] | None) -> list[str]:
    """Makes a row of each group: microseconds, the gain over eager code, the share of the floor."""
    head = f"{'case (microseconds)':46s} {'eager':>11s} {'compiled':>11s} {'native':>11s}"
    lines = [f"{head} {'gain':>6s} {'of the floor':>12s}"]
    for group, codes in shown(cases).items():
        seconds = {code: case.get("median") for code, case in codes.items()}
        best = codes.get("native") or codes.get("compiled") or codes["eager"]
        own, eager = best.get("median"), seconds.get("eager")
        gain = f"{eager / own:5.2f}x" if eager and own else "-"
        least = floor(best, floors) if floors else None
        share = f"{least / own:.0%}" if least and own else "-"
        columns = [scaled(seconds.get(code)) for code in ("eager", "compiled", "native")]
        lines.append(
            f"{group:46s} {' '.join(f'{c:>11s}' for c in columns)} {gain:>6s} {share:>12s}"
        )
        for code, case in codes.items():
            if case.get("problem"):
                lines.append(f"    {code}: {case['problem']}")
            elif code not in ("eager", "compiled", "native"):
                least = floor(case, floors) if floors else None
                share = f"{least / case['median']:.0%}" if least else "-"
                lines.append(f"{'    ' + code:46s} {scaled(case['median']):>35s} {share:>19s}")
    return lines


def profiled(rows: list[dict[str, Any]]) -> list[str]:
    """Says what a guided step consists of."""
    return [
        f"guided step, B = {row['batch']}: {row['count']:.0f} kernels, {row['copies']:.1f} copies, "
        f"{row['busy_us']:.0f} us busy, {row['waiting_us']:.0f} us waiting"
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Gather the parts' results.")
    parser.add_argument("state", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    state: Path = arguments.state

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = {path.stem: path.read_text().strip() for path in sorted(state.glob("*.status"))}
    timings = read(state / "timings.json") or {"cases": [], "left_out": []}
    content = {
        **stamp(GPU, facts(device, 1), os.getloadavg()[0]),
        "native": _native.info(),
        "cuda": torch.version.cuda,
        "parts": parts,
        "floors": read(state / "floors.json"),
        "cases": timings["cases"],
        "left_out": timings["left_out"],
        "profile": read(state / "profile.json") or [],
    }
    arguments.out.write_text(json.dumps(content, indent=1))

    print("\n".join([*table(content["cases"], content["floors"]), *profiled(content["profile"])]))
    left = content["left_out"]
    if left:
        print(f"left out for want of time: {len(left)} cases, the first {left[0]!r}")
    if content["floors"]:
        rates = {k: v for k, v in content["floors"].items() if isinstance(v, float)}
        print("floors: " + ", ".join(f"{k} {v / 1e12:.3g} T/s" for k, v in rates.items()))
    for name, status in parts.items():
        log = state / f"{name}.log"
        last = re.sub(r"\s+", " ", log.read_text(errors="replace").strip()[-110:])
        print(f"{name:20s} {status:16s} {last}")


if __name__ == "__main__":
    main()
