r"""Where the grid ends: how much of the system's own noise denoising takes away.

    python -m experiments.lorenz.ends --quick --out runs/lorenz

The presets' grids end at a time t > 0, from where the state is denoised. Of transition noise with
deviation s that takes away the share :math:`\sigma^2 / (\sigma^2 + s^2)` of the variance, which
raises the log prior; what a network errs at the end lowers it. So each network has an end at which
members have the filter's log prior. The truths are those that the presets' ends were chosen by.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import front
from sda_fast import VPSDE, load_prior, preset, sample

from .. import study
from ..study import Record, number
from . import cases
from .posterior import SETTINGS

Ends = tuple[str, tuple[float, ...]]  # of a prior


@dataclass(frozen=True)
class Profile:
    """What is run: every end of every preset and prior by every truth."""

    presets: Sequence[str]
    ends: Sequence[Ends]
    truths: Sequence[int]
    members: int


SHORTER: Ends = (front.SHORTER, (0.008, 0.007, 0.006, 0.005))
LONGER: Ends = (front.PRIOR, (0.007, 0.005, 0.004, 0.003, 0.002))
QUICK = Profile(("fast",), (SHORTER, LONGER), truths=(10, 11), members=32)
FULL = Profile(("draft", "fast"), (SHORTER, LONGER), truths=range(10, 14), members=32)


@dataclass(frozen=True)
class Cell:
    """One posterior."""

    setting: str
    prior: str
    preset: str
    last: float
    truth: int
    members: int


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for setting in SETTINGS:
        for prior, ends in profile.ends:
            for name in profile.presets:
                for last in ends:
                    for truth in profile.truths:
                        yield Cell(setting, prior, name, last, truth, profile.members)


def evaluate(cell: Cell) -> Record:
    """Samples one posterior and scores it."""
    exact = front.second_run(cell.setting, cell.truth, cell.members)
    instrument, recipe = SETTINGS[cell.setting], preset(cell.preset, last=cell.last)
    case = cases.make_case(instrument, cell.truth, cell.members)
    prior = load_prior(cell.prior, length=cases.LENGTH, composition=recipe.composition)
    sde = VPSDE(cases.guide(case, instrument, prior), prior.shape)
    x = sample(sde, (cell.members,), seed=cell.truth, **recipe.options)

    return front.score(cases.chain.postprocess(x), case) | front.relative(exact)


def table(records: Sequence[Record]) -> str:
    """Writes the means over truths as Markdown."""
    lines = []
    names = ("setting", "prior", "preset", "last")
    for values, group in study.group(records, names).items():
        good = [r for r in group if "error" not in r]
        ratio = front.mean([r["w1"] / r["floor"] for r in good])
        gap = front.mean([r["log_prior"] - r["exact_log_prior"] for r in good])
        numbers = [number(study.mean(good, name)) for name in ("energy", "log_likelihood")]
        lines.append([*values, front.with_error(ratio), numbers[0], front.with_error(gap, ".1f")])
        lines[-1].append(numbers[1])

    head = ["", "", "", "end", "W1 / floor", "energy", "log prior less the filter's"]
    return study.table([*head, "log likelihood"], lines)


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes the table and returns it."""
    records = study.evaluate_all(out / "ends.jsonl", list(cells(profile)), evaluate)
    return study.write(out, "ends", table(records))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
