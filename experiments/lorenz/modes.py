r"""The paper's second result: posteriors of several modes, and what each weighs.

    python -m experiments.lorenz.modes --full --out runs/modes

The Lorenz system and its noise are symmetric under (a, b, c) -> (-a, -b, c), so that observations
which cannot tell a state from its mirror image leave the lobe open; and chaos does where nothing is
observed. Truths of 65 states are observed with these functions of the standardised state:

    c, every 4th  the third coordinate at every 4th state, with a standard deviation of 0.1, as in
                  the paper's figure
    |a|           the first coordinate without its sign, at every 8th state, 0.05
    c, a once     the third coordinate at every 8th state, 0.05, and the sign of a hinted at: a at
                  state 32, with a deviation of 1
    a until 24    the first coordinate at every 8th state up to 24, 0.05, and a forecast from there

A mode is the sequence of lobes, the signs of a at every 8th state. What it weighs is counted in
independent runs of a particle filter of 16384 particles, whose scatter gives the error, and among
the members of the posterior, with its binomial error. Under "c" and "|a|" each mode must weigh what
its mirror image does. The total variation distance between both counts is to be read beside that of
as many draws from the filter's. Missed is the filter's weight of modes without a member, invented
that of members in modes without a particle. "Of known modes" leaves those members out.

Truths are chosen by the filter alone: number 8 is the first whose posterior has two modes and no
more, number 0 has eight; number 3 is the first whose forecast has two of 30 % or more. Beside these
only the first states of several truths are observed, as in the paper: how long are weights right?

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
from sda_fast.evaluation import Observation, log_prior

from .. import front, study
from ..study import Record, number, percent
from . import cases, trajectory_network
from .cases import FILTER, JUNCTION
from .trajectory_network import GLOBAL
from .weights import binomial, summarise

LOBES = 8  # the lobe is that of every 8th state
HINT = 32, 1.0  # the state at which a is seen, and the standard deviation
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


@dataclass(frozen=True)
class Setting:
    """What is observed, every how many states up to which, the standard deviation of its noise, and
    how many states there are."""

    of: Callable[[Tensor], Tensor]
    every: int = 8
    std: float = 0.05
    last: int = cases.LENGTH - 1
    length: int = cases.LENGTH


SETTINGS = {
    "c, every 4th": Setting(third, every=4, std=0.1),
    "|a|": Setting(magnitude),
    "c, a once": Setting(third_and_first),
    "a until 24": Setting(cases.first, last=24),
}
LENGTHS = {f"{n} states": Setting(third, every=4, std=0.1, length=n) for n in (17, 25, 33, 65)}


@dataclass(frozen=True)
class Profile:
    """What is run."""

    posteriors: Sequence[tuple[str, int]]  # settings and truths
    runs: int
    members: int
    samplers: Sequence[tuple[str, str]]  # priors and recipes
    iterations: int  # of the training of the network over whole trajectories
    truths: Sequence[int]  # of each length, by the first sampler


FULL = Profile(
    posteriors=(("c, every 4th", 8), ("|a|", 0), ("c, a once", 0), ("a until 24", 3)),
    runs=8,
    members=128,
    samplers=((JUNCTION, "fast"), (JUNCTION, "accurate"), (GLOBAL, "fast")),
    iterations=6000,
    truths=range(6),
)
QUICK = Profile(
    posteriors=(("c, every 4th", 8), ("|a|", 0)),
    runs=2,
    members=32,
    samplers=((JUNCTION, "fast"),),
    iterations=0,
    truths=range(2),
)


@dataclass(frozen=True)
class Cell:
    """The modes of one posterior, or of one run of a particle filter."""

    setting: str
    truth: int
    method: str
    run: int
    members: int
    recipe: str | None = None
    iterations: int | None = None


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for setting, truth in profile.posteriors:
        for run in range(profile.runs):
            yield Cell(setting, truth, FILTER, run, DRAWN)
        for method, recipe in profile.samplers:
            trained = profile.iterations if method == GLOBAL else None
            yield Cell(setting, truth, method, 0, profile.members, recipe, trained)


def cells_of_lengths(profile: Profile) -> Iterator[Cell]:
    """Lists the cells of posteriors of several lengths."""
    method, recipe = profile.samplers[0]
    for setting in LENGTHS:
        for truth in profile.truths:
            for run in range(profile.runs):
                yield Cell(setting, truth, FILTER, run, DRAWN)
            yield Cell(setting, truth, method, 0, profile.members, recipe)


@cache
def make_case(setting: str, seed: int) -> tuple[Tensor, Observation]:
    """Simulates and observes a truth (L, 3)."""
    chosen = (SETTINGS | LENGTHS)[setting]
    truth, generator = cases.simulate(seed)
    truth = truth[: chosen.length]

    def state(x: Tensor) -> Tensor:
        return chosen.of(cases.chain.preprocess(x))

    exact = state(truth)
    std = torch.full(exact.shape[-1:], chosen.std)
    seen = torch.zeros(exact.shape, dtype=torch.bool)
    seen[: chosen.last + 1 : chosen.every, 0] = True
    if len(std) > 1:
        at, std[1] = HINT
        seen[at, 1] = True
    y = exact + std * torch.randn(exact.shape, generator=generator)

    return truth, Observation(torch.where(seen, y, math.nan), state, std)


def draw(cell: Cell, observation: Observation, folder: Path, device: str) -> Tensor:
    """Draws physical posterior trajectories (N, L, 3)."""
    setting = (SETTINGS | LENGTHS)[cell.setting]
    if cell.recipe is None:
        run, length = 10 + cell.run, setting.length
        return cases.filtered(observation, run, cell.truth, cell.members, length=length)

    if cell.iterations is None:
        prior = cases.load(cell.method, device, setting.length)
    else:
        prior = trajectory_network.load(folder, cell.iterations, device)
    y, std = observation.y[:: setting.every], torch.as_tensor(observation.std)[0].float()

    def A(x: Tensor) -> Tensor:
        return setting.of(x[..., :: setting.every, :])

    guided = GaussianScore(y.to(device), A, std, prior, gamma=cases.GAMMA)
    options = cases.RECIPES[cell.recipe].options
    return cases.draw(guided, cell.members, seed=cell.truth, **options)


def pattern(x: Tensor) -> list[str]:
    """Returns the sequences of lobes of trajectories (N, L, 3)."""
    return ["".join("+" if a > 0 else "-" for a in row) for row in x[:, ::LOBES, 0].tolist()]


def evaluate(cell: Cell, folder: Path, device: str = "cpu") -> Record:
    """Counts the modes, and keeps a few trajectories of a for the figure. Of each mode the mean log
    prior of its members is kept, too."""
    truth, observation = make_case(cell.setting, cell.truth)
    x = draw(cell, observation, folder, device)
    good = cases.kept(x)
    logs: dict[str, list[float]] = {}
    each = (len(truth) - 1) * log_prior(cases.chain, good.double())
    for mode, log in zip(pattern(good), each.tolist(), strict=True):
        logs.setdefault(mode, []).append(log)
    shown = good[:40, :, 0] if cell.run == 0 else good[:0, :, 0]

    return {
        "counts": dict(Counter(pattern(good)).most_common()),
        "log_priors": {mode: sum(values) / len(values) for mode, values in logs.items()},
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
            rows.append((*name, *["diverged"] * 9))
            continue
        p, q = s["positive"]
        rows.append(
            (
                *name,
                sum(w >= 0.01 for w in s["p"]),
                percent(s["missed"]),
                percent(s["invented"]),
                " / ".join(number(x) for x in s["log_prior"]),
                f"{number(s['tv'])} ({number(s['floor'])})",
                f"{number(s['known_tv'])} ({number(s['known_floor'])})",
                f"{p:.2f} ± {s['positive_error']:.2f}",
                f"{q:.2f} ± {binomial(q, s['members']):.2f}",
                percent(s["lost"]),
            )
        )
    head = ["", "sampler", "modes over 1 %", "missed", "invented", "log prior, known / invented"]
    head += ["total variation (floor)", "of known modes (floor)"]
    head += ["p(a > 0) in the middle, filter", "ours", "lost"]

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


def table_of_lengths(summaries: Sequence[Record]) -> str:
    """Writes the means over truths, and their standard errors."""
    lines = []
    for (setting,), group in study.group(summaries, ("setting",)).items():
        good = [s for s in group if "error" not in s]
        if not good:
            continue
        means = [front.with_error(front.mean([s[n] for s in good])) for n in ("tv", "floor")]
        shares = [percent(study.mean(good, name)) for name in ("missed", "invented")]
        each = ", ".join(number(s["tv"]) for s in good)
        lines.append([setting, len(good), *means, each, *shares])

    head = ["", "truths", "total variation", "floor", "of each truth", "missed", "invented"]
    return study.table(head, lines)


def draw_paths(column: Sequence[Any], s: Record) -> None:
    """Draws trajectories of a, the filter's above ours, under the truth's."""
    paths = ((s["filter"], study.GREY), (s["ours"], study.BLUE))
    for panel, (lines, colour) in zip(column, paths, strict=True):
        panel.plot(torch.tensor(lines).T, color=colour, lw=0.6, alpha=0.6)
        panel.plot(s["truth_a"], color="black", lw=1.5, label="truth")


def draw_weights(bars: Any, lobes: Any, s: Record, most: int) -> None:
    """Draws what the first modes weigh, by the filter and then by ours, over the lobes that each is
    a sequence of."""
    n, p, q = s["members"], s["p"], s["q"]
    first = sorted(range(len(p)), key=lambda i: (p[i], q[i]), reverse=True)[:most]
    style: dict[str, Any] = {"width": 0.4, "error_kw": {"lw": 0.8}}
    for x, i in enumerate(first):
        bars.bar(x - 0.2, p[i], yerr=s["errors"][i], color=study.GREY, label=FILTER, **style)
        error = binomial(q[i], n)
        bars.bar(x + 0.2, q[i], yerr=error, color=study.BLUE, label=s["sampler"], **style)
        for state, sign in enumerate(s["modes"][i]):
            colour = study.ORANGE if sign == "+" else "#cccccc"
            label = "a > 0" if sign == "+" else "a < 0"
            lobes.plot(x, LOBES * state, "s", color=colour, ms=3.5, label=label)


def draw_figure(summaries: Sequence[Record], most: int = 14) -> Any:
    """Draws trajectories of a, the filter's and ours, the weights of the modes and their lobes, by
    the sampler whose weights are nearest to the filter's."""
    good = [s for s in summaries if "error" not in s]
    if not good:
        return None
    samplers = study.group(good, ("sampler",))
    (shown,) = min(samplers, key=lambda name: study.mean(samplers[name], "tv") or 0.0)
    chosen = [s for s in good if s["sampler"] == shown]
    figure, axes = study.panels(
        4, len(chosen), width=9 / len(chosen), height=1.6, sharey="row",
        height_ratios=(1, 1, 0.8, 0.8),
    )  # fmt: skip

    for column, s in zip(axes.T, chosen, strict=True):
        column[0].set_title(f"{s['setting']}, truth {s['truth']}", fontsize="medium")
        draw_paths(column[:2], s)
        draw_weights(column[2], column[3], s, most)
        column[0].tick_params(labelbottom=False)
        column[1].set_xlabel("state")
        column[2].sharex(column[3])
        column[3].set_xticks([])
        column[3].set_xlabel("modes")
    names = ("a, filter", "a, ours", "weight of\na mode", "state")
    for panel, name in zip(axes[:, 0], names, strict=True):
        panel.set_ylabel(name)
    axes[3, 0].set_yticks([0, 32, 64])
    study.legend(figure, *axes[:, 0], loc="outside lower center", ncols=5)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes tables and figure, returns the tables."""
    records = study.evaluate_all(
        out / "modes.jsonl",
        list(cells(profile)),
        partial(evaluate, folder=out / "priors", device=device),
    )
    others = study.evaluate_all(
        out / "lengths.jsonl",
        list(cells_of_lengths(profile)),
        partial(evaluate, folder=out / "priors", device=device),
    )
    summaries = summarise(records, HINT[0] // LOBES)
    text = f"{tables(summaries)}\n\n{table_of_lengths(summarise(others, 0))}"
    return study.write(out, "modes", text, draw_figure(summaries))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/modes")
