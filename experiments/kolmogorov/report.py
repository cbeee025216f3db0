"""Writes docs/kolmogorov.md, and copies what it shows, from the folder that the cases wrote to.

python -m experiments.kolmogorov all --bfloat16
python -m experiments.kolmogorov.prior --data kolmogorov-32.h5 --bfloat16
python -m experiments.kolmogorov.schedules --data kolmogorov-32.h5
python -m experiments.kolmogorov.report
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from sda_fast.io import atomic_write

from .cases import CASES

DOCS = Path(__file__).parents[2] / "docs"
TEXT = Path(__file__).with_name("page.md")


def cases(results: dict[str, dict[str, Any]]) -> str:
    """Writes the table of the cases."""
    lines = [
        "| | states | truths, members | numbers observed | gamma | RMSE | where unseen "
        "| spread | CRPS | misfit, the truth's | inconsistency, the truth's |",
        "|---" * 11 + "|",
    ]
    for name, r in results.items():
        unseen = f"{r['unseen']:.3f}" if "unseen" in r else ""
        lines.append(
            f"| {name} | {r['length']} | {r['truths']}, {r['members']} "
            f"| {r['observed']} | {r['gamma']} "
            f"| {r['rmse']:.3f} | {unseen} "
            f"| {r['spread']:.3f} | {r['crps']:.3f} "
            f"| {r['misfit']:.2f}, {r['misfit of the truth']:.2f} "
            f"| {r['inconsistency']:.3f}, {r['inconsistency of the truth']:.3f} |"
        )
    return "\n".join(lines)


def prior(numbers: dict[str, dict[str, float]]) -> str:
    """Writes the table of the prior."""
    lines = ["| | samples | simulations |", "|---|---|---|"]
    lines += [
        f"| {name} | {value:.3f} | {numbers['held-out'][name]:.3f} |"
        for name, value in numbers["samples"].items()
    ]
    return "\n".join(lines)


def modes(result: dict[str, Any]) -> str:
    """Says which members fell into which mode, for the first truth."""
    shown = result["each"][0]
    count = Counter(shown["modes"])
    *first, last = (str(count[shift]) for shift in range(4))
    return (
        f"The {result['members']} members fall {', '.join(first)} and {last} times on shifts 0 to "
        f"3. The misfit by their own shift is {shown['misfit']:.2f}, by any other at least "
        f"{shown['second']:.1f}"
    )


def write(runs: Path, docs: Path = DOCS) -> None:
    """Writes `kolmogorov.md` and the folder `kolmogorov` of pictures.

    Raises:
        FileNotFoundError: A case, the judgement of the prior or the study of schedules has not been
            run.
    """
    results = {name: json.loads((runs / f"{name}.json").read_text()) for name in CASES}
    judged = json.loads((runs / "prior.json").read_text())
    settings = results["sparse"]

    pictures = docs / "kolmogorov"
    pictures.mkdir(parents=True, exist_ok=True)
    names = [f"{name}.png" for name in (*CASES, "prior", "prior-statistics")]
    for name in (*names, *(f"{name}.gif" for name in CASES)):
        atomic_write(pictures / name, (runs / name).read_bytes())

    text = TEXT.read_text().format(
        cases=cases(results),
        prior=prior(judged["numbers"]),
        modes=modes(results["ambiguous"]),
        schedules=(runs / "schedules.md").read_text().strip(),
        climatology=settings["climatology"],
        judged=judged,
        **{name: settings[name] for name in ("steps", "corrections", "tau", "end", "iteration")},
    )
    atomic_write(docs / "kolmogorov.md", text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes docs/kolmogorov.md.")
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/kolmogorov"))
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    write(arguments.runs, arguments.docs)
    print(f"wrote {arguments.docs / 'kolmogorov.md'}")


if __name__ == "__main__":
    main()
