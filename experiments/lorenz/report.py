r"""Runs all studies, and writes their tables and figures into a page.

    python -m experiments.lorenz.report --full      what docs/evaluation.md shows, into it
    python -m experiments.lorenz.report --quick     all of it in small, into runs/quick

The prose of docs/evaluation.md is written by hand; between `<!-- begin NAME -->` and
`<!-- end NAME -->` stands what the study of that name found, made by its own command. Only `--full`
writes there: `--quick` has fewer truths, members, settings and steps of training, and a page of its
own, evaluation.md in its folder. Results are kept in the folder, so that a report that is repeated
computes only what is missing; a fresh folder computes everything anew.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from sda_fast.io import atomic_write

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"

#: The studies, in the page's order.
STUDIES = {
    "posterior": "experiments.lorenz.posterior",
    "modes": "experiments.lorenz.modes",
    "zero_shot": "experiments.lorenz.zero_shot",
    "guidance": "experiments.lorenz.guidance",
    "pseudo_blanket": "experiments.pseudo_blanket",
    "non_markov": "experiments.lorenz.non_markov",
    "wrong_model": "experiments.lorenz.wrong_model",
    "misspecified": "experiments.lorenz.misspecified",
    "scaling": "experiments.scaling",
}


def replace_block(page: str, name: str, text: str) -> str:
    """Puts text between the marks of a study.

    Raises:
        ValueError: The page does not have its marks, once each and in order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page must have {begin!r} and {end!r} once each, in this order")
    head, rest = page.split(begin)
    return f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def title(module: Any) -> str:
    """Returns what a study asks, the first line of its documentation."""
    return str(module.__doc__.splitlines()[0])


def blank_page() -> str:
    """Returns a page of titles and marks alone."""
    parts = ["# The studies, in small"]
    for name, module in STUDIES.items():
        parts += [f"## {title(import_module(module))}", f"`{module}`"]
        parts += [f"<!-- begin {name} -->\n<!-- end {name} -->"]
    return "\n\n".join(parts) + "\n"


def report(out: Path, page: Path, names: list[str], full: bool, device: str = "cpu") -> None:
    """Runs studies and writes what they found into the page, and their figures beside it. A page
    that does not exist is begun."""
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    if not page.exists():
        atomic_write(page, blank_page().encode())
    for name in names:
        print(f"# {name}", flush=True)
        module = import_module(STUDIES[name])
        text = module.run(out / name, module.FULL if full else module.QUICK, device)
        image = out / name / f"{name}.png"
        if image.exists():
            atomic_write(figures / image.name, image.read_bytes())
            text += f"\n\n![{title(module)}](figures/{image.name})"
        atomic_write(page, replace_block(page.read_text(), name, text).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs all studies and writes what they found.")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--quick", action="store_true", help="in small: minutes on two cores, a page in the folder"
    )
    size.add_argument(
        "--full",
        action="store_true",
        help=f"hours on two cores, into {PAGE.parent.name}/{PAGE.name}",
    )
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument(
        "--out", type=Path, help="folder of results, by default runs, or runs/quick of --quick"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    out = arguments.out or (Path("runs") if arguments.full else Path("runs/quick"))
    page = PAGE if arguments.full else out / PAGE.name
    report(out, page, arguments.only, arguments.full, arguments.device)


if __name__ == "__main__":
    main()
