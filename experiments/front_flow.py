r"""Quality against cost, of the flow: presets and even steps by the metrics of its cases.

    python -m experiments.front_flow --quick --out runs/front_flow

Velocities at 8 × 8 points of a turbulent flow (:mod:`experiments.kolmogorov`, "sparse"), by presets
and by even steps with one correction each, as many evaluations of the same windows. Scores of the
ensemble and its mean; the inconsistency, how far the simulator, started at a state of a member,
ends from that member's next one; and the distance of the energy spectra of members and truth, in
decibels.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments import study
from experiments.kolmogorov.assimilation import simulate
from experiments.kolmogorov.cases import CASES
from experiments.kolmogorov.metrics import measure
from experiments.kolmogorov.scene import make_scene
from experiments.study import Record, number
from sda_fast import VPSDE, Junction, Recipe, Standardisation, load_prior, preset, sample
from sda_fast.systems.flow import log_spectral_distance

PRIOR, CASE, SIZE = "kolmogorov-32", "sparse", 256
RULE = Junction(window=5, stride=3)


@dataclass(frozen=True)
class Profile:
    """What is run: all recipes by some truths."""

    truths: Sequence[int]
    members: int
    bfloat16: bool


QUICK = Profile(truths=(0,), members=4, bfloat16=True)
FULL = Profile(truths=range(4), members=4, bfloat16=True)


@dataclass(frozen=True)
class Cell:
    """One posterior."""

    name: str
    truth: int
    members: int
    bfloat16: bool
    evaluations: int


def recipes() -> dict[str, Recipe]:
    """Returns recipes by their names."""
    return {
        "even steps, 32 × 1": Recipe("even", RULE, 32, 1, 0.5),
        "draft": preset("draft"),
        "even steps, 63 × 1": Recipe("even", RULE, 63, 1, 0.5),
        "fast": preset("fast"),
    }


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for truth in profile.truths:
        for name, recipe in recipes().items():
            yield Cell(name, truth, profile.members, profile.bfloat16, recipe.evaluations)


def evaluate(cell: Cell) -> Record:
    """Samples one posterior and scores it."""
    bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled=cell.bfloat16)
    return score(recipes()[cell.name], cell.truth, cell.members, cell.truth, bfloat16, SIZE)


def score(
    recipe: Recipe,
    index: int,
    members: int,
    seed: int,
    precision: AbstractContextManager[None],
    size: int,
) -> Record:
    """Samples the posterior of a truth and scores it.

    Arguments:
        recipe: How it is sampled.
        index: The truth's.
        members: The number of trajectories.
        seed: The sampler's.
        precision: A context to sample in.
        size: The number of points along each axis of the simulator's grid.
    """
    case = CASES[CASE]
    simulator, truth = simulate(32, size, index)
    scene = make_scene(case, truth[: case.length], index)
    prior = load_prior(PRIOR, length=case.length, composition=RULE)
    standard = Standardisation.load(PRIOR)
    posterior = VPSDE(scene.guide(prior, standard, case.gamma), prior.shape)

    began = time.process_time()
    with precision:
        x = sample(posterior, (members,), seed=seed, **recipe.options)
    seconds = time.process_time() - began

    x = standard.postprocess(x)
    spectrum = log_spectral_distance(x, scene.truth)
    return measure(scene, x, simulator) | {"spectrum": spectrum, "seconds": seconds}


METRICS = {
    "rmse": "RMSE",
    "spread": "spread",
    "crps": "CRPS",
    "misfit": "misfit",
    "inconsistency": "inconsistency",
    "spectrum": "spectrum, dB",
    "seconds": "seconds",
}


def table(records: Sequence[Record]) -> str:
    """Writes the means over truths as Markdown."""
    lines = []
    for (name, evaluations), group in study.group(records, ("name", "evaluations")).items():
        scores = []
        for metric in METRICS:
            value = study.mean(group, metric)
            small = metric not in ("misfit", "spectrum", "seconds") and value is not None
            scores.append(f"{value:.3f}" if small else number(value))
        lines.append([name, len(group), evaluations, *scores])

    return study.table(["", "truths", "evaluations", *METRICS.values()], lines)


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes the table and returns it."""
    records = study.evaluate_all(out / "front_flow.jsonl", list(cells(profile)), evaluate)
    return study.write(out, "front_flow", table(records))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/front_flow")
