"""Gathers what the parts of `gpu_suite.sh` wrote: one JSON file, and a short table.

python -m benchmarks.gpu.table STATE OUT.json
"""

import argparse
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

from sda_fast import _native


def read(path: Path) -> Any:
    """Reads what a part wrote, or None where it did not come so far."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def floor(case: dict[str, Any], floors: dict[str, Any] | None) -> float | None:
    """Returns the least seconds of a case."""
    if floors is None:
        return None
    peak = floors.get("bfloat16" if case.get("bfloat16") else "float32")
    work = ((case.get("bytes"), floors.get("copy")), (case.get("flops"), peak))
    return max((n / rate for n, rate in work if n and rate), default=None)


def scaled(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:,.1f}"


def table(timings: dict[str, Any] | None, floors: dict[str, Any] | None) -> list[str]:
    """Makes a row of each group: microseconds, the gain over eager code, the share of the floor.

    Of the operators the large cases are shown, which are what a floor is for.
    """
    groups: dict[str, dict[str, Any]] = {}
    for case in (timings or {}).get("cases", []):
        groups.setdefault(case["group"], {})[case["code"]] = case

    head = f"{'case (microseconds)':46s} {'eager':>11s} {'compiled':>11s} {'native':>11s}"
    lines = [f"{head} {'gain':>6s} {'of the floor':>12s}"]
    for group, codes in groups.items():
        if any(f", {size}, " in group for size in ("small", "medium", "one")):
            continue
        seconds = {code: case.get("median") for code, case in codes.items()}
        best = codes.get("native") or codes.get("compiled") or codes["eager"]
        own, eager = best.get("median"), seconds.get("eager")
        gain = f"{eager / own:5.2f}x" if eager and own else "-"
        least = floor(best, floors)
        share = f"{least / own:.0%}" if least and own else "-"
        columns = [scaled(seconds.get(code)) for code in ("eager", "compiled", "native")]
        lines.append(
            f"{group:46s} {' '.join(f'{c:>11s}' for c in columns)} {gain:>6s} {share:>12s}"
        )
        for code, case in codes.items():
            if case.get("problem"):
                lines.append(f"    {code}: {case['problem']}")
    left = (timings or {}).get("left_out", [])
    if left:
        lines.append(f"left out for want of time: {len(left)} cases, the first {left[0]!r}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Gather the parts' results.")
    parser.add_argument("state", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    state: Path = arguments.state

    cuda = torch.cuda.is_available()
    parts = {path.stem: path.read_text().strip() for path in sorted(state.glob("*.status"))}
    content = {
        "format": "sda_fast gpu suite 1",
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "capability": list(torch.cuda.get_device_capability()) if cuda else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "native": _native.info(),
        },
        "parts": parts,
        "floors": read(state / "floors.json"),
        "timings": read(state / "timings.json"),
        "profile": read(state / "profile.json"),
    }
    arguments.out.write_text(json.dumps(content, indent=1))

    print("\n".join(table(content["timings"], content["floors"])))
    for row in content["profile"] or []:
        print(
            f"guided step, B = {row['batch']}: {row['count']:.0f} kernels, {row['copies']:.1f} "
            f"copies, {row['busy_us']:.0f} us busy, {row['waiting_us']:.0f} us waiting"
        )
    if content["floors"]:
        rates = {k: v for k, v in content["floors"].items() if isinstance(v, float)}
        print("floors: " + ", ".join(f"{k} {v / 1e12:.3g} T/s" for k, v in rates.items()))
    for name, status in parts.items():
        log = state / f"{name}.log"
        last = re.sub(r"\s+", " ", log.read_text(errors="replace").strip()[-110:])
        print(f"{name:20s} {status:16s} {last}")


if __name__ == "__main__":
    main()
