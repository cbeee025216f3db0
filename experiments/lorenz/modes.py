r"""The paper's second result: posteriors of several modes, and what each weighs.

    python -m experiments.lorenz.modes --quick --out runs/lorenz

The Lorenz system and its noise are symmetric under (a, b, c) -> (-a, -b, c), so that observations
which cannot tell a state from its mirror image leave the lobe open. A truth of 65 states is
observed at every 8th state, with a standard deviation of 0.05 in standardised units:

    |a|           the first coordinate without its sign
    c             the third coordinate alone
    c, a once     the same, and the sign of a hinted at: a at state 32, with a deviation of 1

A mode is the sequence of lobes, the signs of a at the observed states. What it weighs is counted in
independent runs of a particle filter of 16384 particles, whose scatter gives the error, and among
the members of the posterior, with its binomial error. In the first two settings each mode must
weigh what its mirror image does. The total variation distance between both counts is to be read
beside that of as many draws from the filter's. Missed is the filter's weight of modes without a
member, invented that of members in modes without a particle.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 4.1
    | https://arxiv.org/abs/2306.10574
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sda_fast import GaussianScore
from sda_fast.evaluation import Observation

from .. import study
from ..study import Record, number, percent
from . import cases
from .cases import FILTER, JUNCTION
from .weights import binomial, summarise

EVERY, STD, HINT = 8, 0.05, (32, 1.0)  # the hint's state and standard deviation
DRAWN = 4096  # trajectories of a filter's run


def magnitude(x: Tensor) -> Tensor:
    """Observes |a| of standardised states (*, 3)."""
    return x[..., :1].abs()


def third(x: Tensor) -> Tensor:
    """Observes c."""
    return x[..., 2:]


def third_and_first(x: Tensor) -> Tensor:
    """Observes c and a."""
    return x[..., [2, 0]]


SETTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "|a|": magnitude,
    "c": third,
    "c, a once": third_and_first,
}


@dataclass(frozen=True)
class Profile:
    """What is run."""

    truths: Sequence[int]
    runs: int
    samplers: Sequence[tuple[int, int, int, float]]  # members, steps, C and tau


QUICK = Profile(truths=(0,), runs=8, samplers=((128, 64, 4, 0.5),))
FULL = Profile(
    truths=(0, 1, 2, 3),
    runs=32,
    samplers=((1024, 64, 4, 0.5), (1024, 256, 4, 0.5), (1024, 256, 16, 0.5)),
)


@dataclass(frozen=True)
class Cell:
    """The modes of one posterior, or of one run of a particle filter."""

    setting: str
    truth: int
    method: str
    run: int
    members: int
    steps: int = 0
    C: int = 0
    tau: float = 0.0


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for truth in profile.truths:
        for setting in SETTINGS:
            for run in range(profile.runs):
                yield Cell(setting, truth, FILTER, run, DRAWN)
            for sampler in profile.samplers:
                yield Cell(setting, truth, JUNCTION, 0, *sampler)


@cache
def make_case(setting: str, seed: int) -> tuple[Tensor, Observation]:
    """Simulates and observes a truth (L, 3)."""
    A = SETTINGS[setting]
    truth, generator = cases.simulate(seed)

    def state(x: Tensor) -> Tensor:
        return A(cases.chain.preprocess(x))

    exact = state(truth)
    std = torch.full(exact.shape[-1:], STD)
    seen = torch.zeros(exact.shape, dtype=torch.bool)
    seen[::EVERY, 0] = True
    if len(std) > 1:
        at, std[1] = HINT
        seen[at, 1] = True
    y = exact + std * torch.randn(exact.shape, generator=generator)

    return truth, Observation(torch.where(seen, y, math.nan), state, std)


def draw(cell: Cell, observation: Observation, device: str) -> Tensor:
    """Draws physical posterior trajectories (N, L, 3)."""
    if cell.method == FILTER:
        return cases.filtered(observation, 10 + cell.run, cell.truth, cell.members)

    prior, A = cases.load(cell.method, device), SETTINGS[cell.setting]
    y, std = observation.y[::EVERY].to(device), torch.as_tensor(observation.std)[0].float()
    guided = GaussianScore(y, lambda x: A(x[..., ::EVERY, :]), std, prior, gamma=cases.GAMMA)
    return cases.sampled(guided, cell)


def pattern(x: Tensor) -> list[str]:
    """Returns the sequences of lobes of trajectories (N, L, 3)."""
    return ["".join("+" if a > 0 else "-" for a in row) for row in x[:, ::EVERY, 0].tolist()]


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Counts the modes, and keeps a few trajectories of a for the figure."""
    truth, observation = make_case(cell.setting, cell.truth)
    x = draw(cell, observation, device)
    good = cases.kept(x)
    shown = good[:40, :, 0] if cell.run == 0 else good[:0, :, 0]

    return {
        "counts": dict(Counter(pattern(good)).most_common()),
        "lost": 1 - len(good) / len(x),
        "of_truth": pattern(truth[None])[0],
        "shown": [[round(a, 2) for a in row] for row in shown.tolist()],
        "truth_a": [round(a, 3) for a in truth[:, 0].tolist()],
    }


def tables(summaries: Sequence[Record], least: float = 0.03) -> str:
    """Writes the distances, and the weights of all modes above `least`."""
    rows = []
    for s in summaries:
        name = (f"`{s['setting']}`, truth {s['truth']}", s["sampler"])
        if "error" in s:
            rows.append((*name, *["diverged"] * 8))
            continue
        p, q = s["positive"]
        rows.append(
            (
                *name,
                sum(w >= 0.01 for w in s["p"]),
                number(s["tv"]),
                f"{number(s['floor'][0])} ({number(s['floor'][1])})",
                percent(s["missed"]),
                percent(s["invented"]),
                f"{p:.2f} ± {s['positive_error']:.2f}",
                f"{q:.2f} ± {binomial(q, s['members']):.2f}",
                percent(s["lost"]),
            )
        )
    head = ["", "sampler", "modes over 1 %", "total variation", "floor, median (95 %)", "missed"]
    head += ["invented", "p(a > 0) in the middle, filter", "ours", "lost"]

    good = [s for s in summaries if "error" not in s]
    samplers = list(dict.fromkeys(s["sampler"] for s in good))
    lines = []
    for (setting, truth), group in study.group(good, ("setting", "truth")).items():
        weighed = {s["sampler"]: dict(zip(s["modes"], s["q"], strict=True)) for s in group}
        one = group[0]
        known = {m: (p, e) for m, p, e in zip(one["modes"], one["p"], one["errors"], strict=True)}
        names = list(known) + [m for q in weighed.values() for m in q if m not in known]
        for mode in dict.fromkeys(names):
            p, error = known.get(mode, (0.0, 0.0))
            if max(p, *(q.get(mode, 0.0) for q in weighed.values())) < least:
                continue
            line = [f"`{setting}`, truth {truth}"]
            line.append(f"`{mode}`" + (", the truth" if mode == one["of_truth"] else ""))
            line.append(f"{p:.3f} ± {error:.3f}")
            for s in group:
                q = weighed[s["sampler"]].get(mode, 0.0)
                line.append(f"{q:.3f} ± {binomial(q, s['members']):.3f}")
            lines.append(line)

    return f"{study.table(head, rows)}\n\n{study.table(['', 'lobes', FILTER, *samplers], lines)}"


def draw_figure(summaries: Sequence[Record], most: int = 14) -> Any:
    """Draws trajectories of a, the filter's and ours, and the weights of the modes."""
    good = [s for s in summaries if "error" not in s]
    if not good:
        return None
    shown = (good[-1]["truth"], good[-1]["sampler"])
    chosen = [s for s in good if (s["truth"], s["sampler"]) == shown]
    figure, axes = study.panels(3, len(chosen), width=4.0, height=2.3)

    for column, s in zip(axes.T, chosen, strict=True):
        column[0].set_title(s["setting"], fontsize="medium")
        for panel, lines, colour in (
            (column[0], s["filter"], study.GREY),
            (column[1], s["ours"], study.BLUE),
        ):
            panel.plot(torch.tensor(lines).T, color=colour, lw=0.6, alpha=0.6)
            panel.plot(s["truth_a"], color="black", lw=1.5)
        column[1].set_xlabel("state")

        n, count = s["members"], min(most, len(s["p"]))
        p, q, error = (s[name][:count] for name in ("p", "q", "errors"))
        at = torch.arange(count)
        column[2].bar(at - 0.2, p, 0.38, yerr=error, color=study.GREY, label=FILTER)
        errors = [binomial(x, n) for x in q]
        column[2].bar(at + 0.2, q, 0.38, yerr=errors, color=study.BLUE, label="ours")
        column[2].set_xticks(at, s["modes"][:count], rotation=60, fontsize=5)
    for panel, label in zip(
        axes[:, 0], ("a, particle filter", f"a, ours, {shown[1]}", "weight"), strict=True
    ):
        panel.set_ylabel(label)
    axes[2, 0].legend(fontsize="x-small", frameon=False)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes tables and figure, returns the tables."""
    records = study.evaluate_all(
        out / "modes.jsonl", list(cells(profile)), partial(evaluate, device=device)
    )
    summaries = summarise(records, HINT[0] // EVERY)
    return study.write(out, "modes", tables(summaries), draw_figure(summaries))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
