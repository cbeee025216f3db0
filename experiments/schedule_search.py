r"""A search of schedules, at random and in closed form: which choices a good one is made of.

    python -m experiments.schedule_search --quick --out runs/schedule_search

Each candidate spends 128 evaluations, or a few less, on the three posteriors of
:mod:`experiments.schedules`, whose samples' law is known exactly
(:func:`sda_fast.evaluation.sampler_law`). What is drawn: the grid's first time and power,
:math:`t_n = t_0 (1 - n / N)^p`; the predictor's order; how many corrections, below which time, and
in how many of the last steps none; tau, and what it is multiplied by below t = 0.02; and whether
the state is denoised at the end. The score is the geometric mean of the divergences from the three
posteriors, in hundredths of a nat per dimension.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from sda_fast import Recipe
from sda_fast.evaluation import kl_divergence, sampler_law

from . import study
from .schedules import LENGTH, PROBLEMS, grid, write
from .study import Record

BUDGET, SMALL = 128, 0.02

# What is drawn from, uniformly; tau and the power from intervals.
FIRSTS = (0.8, 0.9, 0.95, 1.0)
ORDERS = (1, 2, 3)
COUNTS = (1, 2, 3, 4)
BELOWS = (0.3, 0.5, 0.7, 1.0)
LASTS = (0, 2, 4)
SHRINKS = (1.0, 0.5, 0.25, 0.125)
POWERS, TAUS = (1.0, 3.5), (0.1, 1.5)

SHOWN = 5  # of the best
CHOICES = {
    "order": "order of the predictor",
    "below": "corrections below",
    "count": "corrections a step",
    "last": "last steps without",
    "shrink": "tau at the end",
    "first": "first time",
    "denoise": "denoised at the end",
}


@dataclass(frozen=True)
class Profile:
    """What is run: how many are drawn."""

    candidates: int


QUICK = Profile(20)
FULL = Profile(250)


@dataclass(frozen=True)
class Candidate:
    """A schedule."""

    first: float
    power: float
    order: int
    count: int
    below: float
    last: int
    tau: float
    shrink: float
    denoise: bool

    def recipe(self, steps: int) -> Recipe:
        """Returns it with a number of steps."""
        times = grid(self.first, self.power, steps)
        counts = [self.count if t < self.below else 0 for t in times[1:]]
        counts[steps - self.last :] = [0] * self.last
        taus = tuple(self.tau if t > SMALL else self.shrink * self.tau for t in times[1:])
        return Recipe("", None, times, tuple(counts), taus, self.denoise)

    @property
    def steps(self) -> int:
        """As many as the budget allows."""
        counts = range(self.last + 1, BUDGET + 1)
        return max(n for n in counts if self.recipe(n).evaluations <= BUDGET)


def draw(n: int) -> list[Candidate]:
    """Draws candidates, the same ones every time."""
    of = random.Random(0)
    return [
        Candidate(
            first=of.choice(FIRSTS),
            power=round(of.uniform(*POWERS), 2),
            order=of.choice(ORDERS),
            count=of.choice(COUNTS),
            below=of.choice(BELOWS),
            last=of.choice(LASTS),
            tau=round(math.exp(of.uniform(*map(math.log, TAUS))), 2),
            shrink=of.choice(SHRINKS),
            denoise=of.choice((False, True)),
        )
        for _ in range(n)
    ]


def evaluate(candidate: Candidate) -> Record:
    """Returns the divergences of a schedule's samples."""
    recipe = candidate.recipe(candidate.steps)
    options = {name: value for name, value in recipe.options.items() if name != "clip"}
    record: Record = {}
    for name, problem in PROBLEMS.items():
        guided = problem.guided()
        law = sampler_law(guided, guided.eps, order=candidate.order, **options)
        try:
            record[name] = 100 * kl_divergence(law, problem.posterior) / (2 * LENGTH)
        except torch.linalg.LinAlgError:
            record[name] = math.nan
        if not math.isfinite(record[name]):
            raise FloatingPointError(f"not stable: {name}")
    return record


def score(record: Record) -> float:
    """Returns the geometric mean of the divergences; infinite where a schedule is not stable."""
    if "error" in record:
        return math.inf
    return math.exp(sum(math.log(max(record[name], 1e-12)) for name in PROBLEMS) / len(PROBLEMS))


def best(records: Sequence[Record]) -> str:
    """Writes the best schedules."""
    rows = []
    for record in sorted(records, key=score)[:SHOWN]:
        c = Candidate(**{f.name: record[f.name] for f in fields(Candidate)})
        line = [
            f"from {c.first:g}, power {c.power:g}, {c.steps} steps",
            c.order,
            f"{c.count} below {c.below:g}, none in the last {c.last}",
            f"{c.tau:g}, times {c.shrink:g}",
            "yes" if c.denoise else "no",
        ]
        rows.append(line + [write(record.get(name, math.inf)) for name in PROBLEMS])
    head = ["grid", "order", "corrections", "tau, and at the end", "denoised", *PROBLEMS]
    return study.table(head, rows)


def by_choice(records: Sequence[Record]) -> str:
    """Writes the score of the best, and of the middle, schedule that made each choice."""
    rows = []
    for key, title in CHOICES.items():
        for value in sorted({record[key] for record in records}):
            scores = sorted(score(r) for r in records if r[key] == value)
            middle = scores[len(scores) // 2]
            shown: Any = ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}"
            rows.append([title, shown, len(scores), write(scores[0]), write(middle)])
    return study.table(["", "", "drawn", "best", "median"], rows)


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet; writes and returns the tables."""
    candidates = draw(profile.candidates)
    records = study.evaluate_all(out / "schedules.jsonl", candidates, evaluate)
    return study.write(out, "schedule_search", f"{best(records)}\n\n{by_choice(records)}")


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/schedule_search")
