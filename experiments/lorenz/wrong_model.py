r"""What a wrong model of the observation noise costs, and what the right likelihood gains.

    python -m experiments.lorenz.wrong_model --full --out runs/wrong_model

The first coordinate of a truth of 65 states is observed at every 4th state, in standardised units,
with noise that is

    Gaussian    of standard deviation 0.1, the control
    heavy       Student's t with 2 degrees of freedom, of scale 0.1: its variance is infinite
    bimodal     0.1 about -0.5 or +0.5, as of an instrument that slips

Each is assimilated under several assumptions, by our posterior and by a particle filter of 16384
particles. The filter under the right assumption, "right", is what both are to be like; its row is
the floor, a second run of it. A filter's row under another assumption is what that assumption costs
an exact method.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), which assumes Gaussian noise throughout
    | https://arxiv.org/abs/2306.10574
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sda_fast import LikelihoodScore
from sda_fast.likelihood import Gaussian, Huber, Likelihood, StudentT

from .. import study
from ..study import Record
from . import cases
from .cases import FILTER, METRICS, Case, first

EVERY, SCALE, DF, SLIP = 4, 0.1, 2, 0.5
OURS = "ours"

Operator = Callable[[Tensor], Tensor]


class TwoPeaks(Likelihood):
    r"""Noise of two peaks, :math:`y \sim \frac{1}{2} \sum_\pm N(A(x) \pm d, s^2 + v)`.

    Arguments:
        y: The observations; NaN where nothing was observed.
        A: The observation operator.
        std: The standard deviation s of a peak.
        slip: The distance d of each peak from the truth.
    """

    def __init__(self, y: Tensor, A: Operator, std: float, slip: float):
        super().__init__(y, A)
        self.std, self.slip = std, slip

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each observation."""
        total = self.std**2 + variance
        peaks = torch.stack(
            [-((y - prediction - d) ** 2) / (2 * total) for d in (-self.slip, self.slip)]
        )
        return peaks.logsumexp(dim=0) - math.log(2) - math.log(2 * math.pi * total) / 2


def gaussian(size: tuple[int, ...], generator: Generator) -> Tensor:
    """Draws the control's noise."""
    return SCALE * torch.randn(size, generator=generator)


def heavy(size: tuple[int, ...], generator: Generator) -> Tensor:
    """Draws Student's t, a normal variate by the root of a mean of squares of others."""
    squares = torch.randn((DF, *size), generator=generator).square()
    return SCALE * torch.randn(size, generator=generator) / squares.mean(dim=0).sqrt()


def bimodal(size: tuple[int, ...], generator: Generator) -> Tensor:
    """Draws noise of two peaks."""
    sign = 2.0 * torch.randint(2, size, generator=generator) - 1
    return SLIP * sign + SCALE * torch.randn(size, generator=generator)


SPREAD = math.hypot(SLIP, SCALE)  # the standard deviation of noise of two peaks

# the noise, and what it may be assumed to be, the right assumption first
NOISES: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[..., Likelihood]]]] = {
    "Gaussian": (gaussian, {"right": partial(Gaussian, std=SCALE)}),
    "heavy": (
        heavy,
        {
            "right": partial(StudentT, scale=SCALE, df=float(DF)),
            "Huber, 0.1": partial(Huber, scale=SCALE),
            "Gaussian, 0.1": partial(Gaussian, std=SCALE),
            "Gaussian, 0.5": partial(Gaussian, std=0.5),
        },
    ),
    "bimodal": (
        bimodal,
        {
            "right": partial(TwoPeaks, std=SCALE, slip=SLIP),
            f"Gaussian, {SPREAD:.2f}": partial(Gaussian, std=SPREAD),
            "Gaussian, 0.1": partial(Gaussian, std=SCALE),
        },
    ),
}


@dataclass(frozen=True)
class Profile:
    """What is run."""

    truths: int
    members: int
    recipe: str


FULL = Profile(truths=4, members=32, recipe="fast")
QUICK = Profile(truths=1, members=16, recipe="fast")


@dataclass(frozen=True)
class Cell:
    """One posterior, ours by a recipe."""

    noise: str
    truth: int
    members: int
    assumed: str
    method: str
    recipe: str | None = None


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for truth in range(profile.truths):
        for noise, (_, assumptions) in NOISES.items():
            for assumed in assumptions:
                yield Cell(noise, truth, profile.members, assumed, FILTER)
                yield Cell(noise, truth, profile.members, assumed, OURS, profile.recipe)


class Readings:
    """What a particle filter is told: a likelihood for each state."""

    def __init__(self, likelihood: Likelihood):
        self.likelihood = likelihood

    def observed(self, step: int) -> bool:
        """Says whether a state was observed."""
        return step % EVERY == 0

    def log_likelihood(self, step: int, x: Tensor) -> Tensor:
        """Returns the log-likelihood of physical states (N, 3)."""
        prediction = first(cases.chain.preprocess(x))
        y = self.likelihood.y[step // EVERY]
        return self.likelihood.log_density(y, prediction, 0.0).sum(dim=-1)


def operator(x: Tensor) -> Tensor:
    """Predicts what is observed of standardised trajectories (B, L, 3)."""
    return first(x[..., ::EVERY, :])


@cache
def make_case(noise: str, seed: int, members: int) -> Case:
    """Simulates and observes a truth, with its posterior under the right assumption."""
    truth, generator = cases.simulate(seed)
    exact = operator(cases.chain.preprocess(truth))
    draw, assumptions = NOISES[noise]
    y = exact + draw(tuple(exact.shape), generator)
    readings = Readings(assumptions["right"](y, operator))
    return Case(truth, readings, cases.filtered(readings, 1, seed, members))


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers."""
    case = make_case(cell.noise, cell.truth, 256)
    y = case.observation.likelihood.y
    likelihood = NOISES[cell.noise][1][cell.assumed](y, operator)
    if cell.recipe is None:
        x = cases.filtered(Readings(likelihood), 2, cell.truth, cell.members)
    else:
        guided = LikelihoodScore(likelihood, cases.load(device=device), gamma=cases.GAMMA)
        options = cases.RECIPES[cell.recipe].options
        x = cases.draw(guided, cell.members, seed=cell.truth, **options)

    return cases.measure(x, case)


def average(records: list[Record]) -> list[Record]:
    """Returns the means over truths."""

    def floor(record: Record) -> bool:
        return record["method"] == FILTER and record["assumed"] == "right"

    records = cases.above_floor(records, ("noise", "truth"), floor)
    return study.average(records, ("noise", "assumed", "method"), METRICS)


def tables(rows: list[Record]) -> str:
    """Writes the means over truths."""
    lines = [(r["noise"], r["assumed"], study.method(r), *study.scores(r, METRICS)) for r in rows]
    return study.table(["noise", "assumed", "", *METRICS.values()], lines)


# what is drawn, by the label of its axis
DRAWN = {
    "energy": "energy distance to the exact posterior",
    "rmse": "RMSE of the mean",
}
STYLES = {FILTER: (study.GREY, "s", -0.14), OURS: (study.BLUE, "o", 0.14)}


def draw_figure(rows: list[Record]) -> Any:
    """Draws the energy distance and the RMSE, a line for each noise and assumption, with hollow
    marks where the mean is without truths that diverged."""
    names = list(dict.fromkeys((row["noise"], row["assumed"]) for row in rows))
    figure, axes = study.panels(1, len(DRAWN), width=4.5, height=3.2, sharey=True)
    for panel, (metric, label) in zip(axes[0], DRAWN.items(), strict=True):
        for row in rows:
            colour, shape, shift = STYLES[row["method"]]
            y = names.index((row["noise"], row["assumed"])) + shift
            style = {"color": colour, "label": row["method"]}
            if row["diverged"]:
                style |= {"mfc": "white", "label": f"{row['method']}, without what diverged"}
            panel.plot(row[metric], y, shape, ms=6, **style)
        panel.set_xlabel(label)
        panel.grid(axis="y", color="#dddddd", lw=0.6)
        panel.tick_params(axis="y", length=0)

    distance, error = axes[0]
    distance.set_xscale("symlog", linthresh=1)
    distance.xaxis.set_major_formatter("{x:g}")
    error.set_xscale("log")
    study.plain_ticks(error.xaxis)
    distance.set_yticks(range(len(names)), [f"{noise}: {assumed}" for noise, assumed in names])
    distance.set_ylim(len(names) - 0.5, -0.5)
    distance.set_ylabel("noise: what is assumed of it")
    study.legend(figure, *axes[0], loc="outside upper center", ncols=3)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes table and figure, returns the table."""
    records = study.evaluate_all(
        out / "wrong_model.jsonl", list(cells(profile)), partial(evaluate, device=device)
    )
    rows = average(records)
    return study.write(out, "wrong_model", tables(rows), draw_figure(rows))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/wrong_model")
