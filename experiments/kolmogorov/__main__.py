"""Runs cases: `python -m experiments.kolmogorov CASE ...`."""

import argparse
from pathlib import Path
from typing import Any

from .assimilation import assimilate
from .cases import CASES
from .metrics import NUMBERS
from .sampling import add_options, read_options


def summary(result: dict[str, Any]) -> str:
    """Writes the numbers of a case for a terminal."""
    numbers = {name: result[name] for name in ("truths", *NUMBERS, "seconds") if name in result}
    return "\n".join(
        f"{name:28}{value:.3f}" if isinstance(value, float) else f"{name:28}{value}"
        for name, value in numbers.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.kolmogorov",
        description="Assimilates observations of a Kolmogorov flow.",
        epilog="; ".join(f"{name}: {case.title}" for name, case in CASES.items()),
    )
    parser.add_argument(
        "case", nargs="+", choices=(*CASES, "all"), metavar="CASE", help=", ".join((*CASES, "all"))
    )
    parser.add_argument("--out", type=Path, default=Path("runs/kolmogorov"), help="folder to write")
    parser.add_argument("--members", type=int, help="by default the case's")
    parser.add_argument("--gamma", type=float, help="by default the case's")
    parser.add_argument("--truths", type=int, default=1, help="numbers are means over so many")
    add_options(parser)
    arguments = parser.parse_args()

    for name in CASES if "all" in arguments.case else arguments.case:
        print(f"{name}: {CASES[name].title}", flush=True)
        result = assimilate(
            name,
            arguments.out,
            read_options(arguments),
            members=arguments.members,
            gamma=arguments.gamma,
            truths=arguments.truths,
        )
        print(summary(result))
        print(f"written: {arguments.out / name}.png, .gif, .npz and .json\n", flush=True)


if __name__ == "__main__":
    main()
