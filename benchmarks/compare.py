"""Compares two results, and exits with 1 where the second is slower beyond noise.

    python -m benchmarks.compare A.json B.json [--tolerance 0.1]

A case is slower if its median is, by more than the tolerance, and its first quartile lies above the
third one of before: noise that fills the range between the quartiles is not called a regression.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from .results import Result, groups, load
from .text import seconds


def changes(a: Result, b: Result, tolerance: float) -> Iterator[tuple[str, str, str, float]]:
    """Yields of the cases of both, what changed, "slower" or "faster": its verdict, group, code and
    the ratio of the medians, B's over A's."""
    after = groups(b)
    for group, codes in groups(a).items():
        for code, old in codes.items():
            new = after.get(group, {}).get(code)
            if new is None:
                continue
            change = new["median"] / old["median"]
            if change > 1 + tolerance and new["q1"] > old["q3"]:
                yield "slower", group, code, change
            elif change < 1 / (1 + tolerance) and new["q3"] < old["q1"]:
                yield "faster", group, code, change


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare two results.")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the medians")
    arguments = parser.parse_args(argv)
    a, b = load(arguments.a), load(arguments.b)

    if a["machine"] != b["machine"]:
        differs = [k for k in a["machine"] if a["machine"][k] != b["machine"].get(k)]
        print(f"the machines differ in {', '.join(differs)}")
    old, new = groups(a), groups(b)
    shared = sum(code in new.get(group, {}) for group, codes in old.items() for code in codes)
    if not shared:
        print("the results have no case in common")
        return 2

    found = sorted(changes(a, b, arguments.tolerance), key=lambda change: -change[3])
    for verdict, group, code, change in found:
        times = f"{seconds(old[group][code]['median'])} -> {seconds(new[group][code]['median'])}"
        print(f"{verdict}  {change:5.2f}x  {group}, {code}: {times}")
    slower = sum(verdict == "slower" for verdict, *_ in found)
    print(f"{shared} cases, {slower} slower, {len(found) - slower} faster beyond noise")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
