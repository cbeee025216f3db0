r"""Runs all studies, and writes their tables and figures into docs/evaluation.md.

    python -m experiments.lorenz.report --quick --out runs

The page's prose is written by hand; between `<!-- begin NAME -->` and `<!-- end NAME -->` stands
what the study of that name found, made by its own command. Results are kept in the folder, so that
a report that is repeated computes only what is missing; a fresh folder computes everything anew.
"""

import argparse
from importlib import import_module
from pathlib import Path

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


def report(out: Path, page: Path, names: list[str], full: bool, device: str = "cpu") -> None:
    """Runs studies and writes what they found into the page, and their figures beside it."""
    figures = page.parent / "figures"
    figures.mkdir(exist_ok=True)
    for name in names:
        print(f"# {name}", flush=True)
        module = import_module(STUDIES[name])
        text = module.run(out / name, module.FULL if full else module.QUICK, device)
        image = out / name / f"{name}.png"
        if image.exists():
            atomic_write(figures / image.name, image.read_bytes())
            text += f"\n\n![{module.__doc__.splitlines()[0]}](figures/{image.name})"
        atomic_write(page, replace_block(page.read_text(), name, text).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs all studies and writes what they found.")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="of the order of an hour on two cores")
    size.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write into")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    report(arguments.out, arguments.page, arguments.only, arguments.full, arguments.device)


if __name__ == "__main__":
    main()
