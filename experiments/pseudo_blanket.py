r"""What the pseudo-blanket approximation costs, in closed form, over k, memory, steps, C and tau.

    python -m experiments.pseudo_blanket --full --out runs/pseudo_blanket

A stationary AR(1) chain, :math:`x_i = a x_{i-1} + \sqrt{1 - a^2} z_i`, has the correlation time
:math:`T = -1 / \log a`, in states. Its windows' scores are known, and so is the law of the
sampler's own samples (:func:`sda_fast.evaluation.sampler_law`), so that what a
composition or a setting of the sampler costs is a Kullback-Leibler divergence from the truth, in
nats and without Monte-Carlo noise. Three tables:

    windows    the divergence over k and T, for both rules, at fixed steps, C and tau; and the
               smallest k at which the composition adds less than a tenth of a nat to what the
               exact score costs with the same sampler
    sampler    the divergence over steps, C and tau, for one chain and one k
    posterior  of a posterior instead: every 8th state is observed, and guided by Gamma. The truth
               is the Gaussian conditioned, and the exact score is guided in the same way

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 3.1 and appendix
    | https://arxiv.org/abs/2306.10574
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sda_fast import VPSDE, Centre, GaussianScore, Junction, MCScoreNet
from sda_fast.composition import Composition
from sda_fast.evaluation import (
    GaussianEstimator,
    LinearGaussianChain,
    WindowEstimator,
    kl_divergence,
    sampler_law,
)

from . import study
from .study import Record, number

EXACT, CENTRE, JUNCTION = "exact score", "centre", "junction"
EVERY, STD, GAMMA = 8, 0.1, 3e-2
LITTLE = 0.1  # nats, that a composition may add
LEAST = 1e-4  # nats, below which none are told apart in the figure


@dataclass(frozen=True)
class Profile:
    """What is computed."""

    length: int
    orders: Sequence[int]
    times: Sequence[float]
    steps: Sequence[int]
    corrections: Sequence[int]
    taus: Sequence[float]
    middle: tuple[float, int, int, int, float]  # T, k, steps, C, tau, where others vary


FULL = Profile(
    length=33,
    orders=(1, 2, 3, 4, 6, 8),
    times=(2.0, 5.0, 10.0, 20.0, 50.0),
    steps=(32, 64, 128, 256),
    corrections=(0, 1, 2, 4, 8),
    taus=(0.1, 0.25, 0.5, 1.0),
    middle=(20.0, 4, 128, 2, 0.25),
)
QUICK = Profile(
    length=17,
    orders=(1, 2, 4),
    times=(2.0, 20.0),
    steps=(32, 64),
    corrections=(0, 1, 4),
    taus=(0.25, 0.5),
    middle=(20.0, 2, 64, 2, 0.25),
)


@dataclass(frozen=True)
class Cell:
    """One law."""

    table: str
    length: int
    rule: str
    order: int
    time: float
    steps: int
    C: int
    tau: float
    observed: bool = False


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    time, order, steps, C, tau = profile.middle
    n = profile.length

    for T in profile.times:
        for c in (0, C):
            for table, observed in (("windows", False), ("posterior", True)):
                yield Cell(table, n, EXACT, 0, T, steps, c, tau, observed)
                for k in profile.orders:
                    for rule in (CENTRE, JUNCTION):
                        yield Cell(table, n, rule, k, T, steps, c, tau, observed)
    for c in profile.corrections:
        for amplitude in profile.taus if c else (0.0,):
            for N in profile.steps:
                for rule in (EXACT, CENTRE, JUNCTION):
                    k = 0 if rule == EXACT else order
                    yield Cell("sampler", n, rule, k, time, N, c, amplitude)


def make_chain(a: float) -> LinearGaussianChain:
    """Returns the stationary AR(1) chain of variance 1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return LinearGaussianChain.stationary(a * one, 0 * one[0], (1 - a**2) * one)


def make_estimator(
    rule: Composition | None, chain: LinearGaussianChain, length: int, window: int, sde: VPSDE
) -> nn.Module:
    """Returns the noise estimator composed of exact scores of windows, or the exact one."""
    if rule is None:
        return GaussianEstimator(chain.joint(length), sde)
    network = MCScoreNet(1, order=window // 2, composition=rule, length_aware=True)
    network.kernel = WindowEstimator(chain.joint(window), window, sde)  # type: ignore[assignment]
    return network


def evaluate(cell: Cell) -> Record:
    """Returns the divergence of a law of samples from the truth, and its parts."""
    chain = make_chain(math.exp(-1 / cell.time))
    sde = VPSDE(nn.Identity(), shape=(cell.length, 1))
    window = 2 * cell.order + 1
    rules = {CENTRE: Centre(max(cell.order, 1)), JUNCTION: Junction(max(window, 2), 1)}
    if cell.rule == JUNCTION:
        rules[JUNCTION] = Junction(window, cell.order)
    estimator = make_estimator(rules.get(cell.rule), chain, cell.length, window, sde)
    truth = chain.joint(cell.length)

    if cell.observed:
        generator = torch.Generator().manual_seed(0)
        x = truth.sample(generator=generator)
        H = torch.eye(cell.length, dtype=torch.float64)[::EVERY]
        noise = torch.randn(len(H), dtype=torch.float64, generator=generator)
        y = H @ x + STD * noise
        truth = truth.condition(H, STD**2 * torch.eye(len(H), dtype=torch.float64), y)

        def observe(states: Tensor) -> Tensor:
            return states[..., ::EVERY, 0]

        prior = VPSDE(estimator, shape=sde.shape)
        estimator = GaussianScore(y, observe, STD, prior, gamma=GAMMA)

    law = sampler_law(sde, estimator, steps=cell.steps, corrections=cell.C, tau=cell.tau or 1.0)
    spread = float(law.covariance.diagonal().mean() / truth.covariance.diagonal().mean())

    return {"kl": kl_divergence(law, truth), "spread": spread**0.5}


def by_windows(records: Sequence[Record], name: str) -> str:
    """Writes the divergence over k and T, and the smallest k that costs little."""
    mine = [record for record in records if record["table"] == name]
    times = list(dict.fromkeys(record["time"] for record in mine))
    orders = sorted({record["order"] for record in mine} - {0})
    rows = []
    for (rule, C), group in study.group(mine, ("rule", "C")).items():
        for k in [0] if rule == EXACT else orders:
            kl = {r["time"]: r["kl"] for r in group if r["order"] == k}
            label = "" if rule == EXACT else f"{k}"
            rows.append((rule, C, label, *(number(kl[T]) for T in times)))
    rows.sort(key=lambda row: row[1])
    head = ["", "C", "k", *(f"T = {T:g}" for T in times)]
    text = study.table(head, rows)

    least = []
    for (rule, C), group in study.group(mine, ("rule", "C")).items():
        if rule == EXACT:
            floor = {r["time"]: r["kl"] for r in group}
            continue
        chosen = []
        for T in times:
            good = [r["order"] for r in group if r["time"] == T and r["kl"] < floor[T] + LITTLE]
            chosen.append(str(min(good)) if good else f"above {orders[-1]}")
        least.append((rule, C, *chosen))
    head = ["smallest k that adds less than 0.1 nats", "C", *(f"T = {T:g}" for T in times)]

    return f"{text}\n\n{study.table(head, least)}"


def by_sampler(records: Sequence[Record]) -> str:
    """Writes the divergence over steps, C and tau."""
    mine = [record for record in records if record["table"] == "sampler"]
    steps = list(dict.fromkeys(record["steps"] for record in mine))
    rows = []
    for (C, tau), group in study.group(mine, ("C", "tau")).items():
        scores = []
        for N in steps:
            kl = {r["rule"]: r["kl"] for r in group if r["steps"] == N}
            scores.append(" / ".join(number(kl[rule]) for rule in (EXACT, CENTRE, JUNCTION)))
        rows.append((C, tau or "", *scores))

    return study.table(["C", "tau", *(f"{N} steps" for N in steps)], rows)


STYLES = {CENTRE: "o-", JUNCTION: "s--"}


def draw_windows(panel: Any, records: Sequence[Record]) -> None:
    """Draws what compositions add to the exact score against k, for each memory."""
    groups = study.group(records, ("time",))
    for ((T,), group), colour in zip(groups.items(), study.shades(len(groups)), strict=True):
        floor = next(r["kl"] for r in group if r["rule"] == EXACT)
        for rule, style in STYLES.items():
            points = [r for r in group if r["rule"] == rule]
            excess = [max(r["kl"] - floor, LEAST) for r in points]
            label = f"{rule}, T = {T:g}"
            panel.plot([r["order"] for r in points], excess, style, color=colour, ms=4, label=label)
    panel.axhline(LITTLE, color="black", lw=0.8)
    panel.set(yscale="log", xlabel="order of windows k")


def draw_sampler(panel: Any, records: Sequence[Record]) -> None:
    """Draws the divergence against the evaluations, for each size of the corrections."""
    groups = study.group(records, ("tau",))
    for ((tau,), group), colour in zip(groups.items(), study.shades(len(groups)), strict=True):
        x = [r["steps"] * (1 + r["C"]) for r in group]
        label = f"tau = {tau:g}" if tau else "C = 0"
        shape = "o" if tau else "D"
        panel.loglog(x, [r["kl"] for r in group], shape, color=colour, ms=4, label=label)
    panel.set_xlabel("score evaluations")


def draw_figure(records: Sequence[Record]) -> Any:
    """Draws the divergence against k, and against the number of evaluations."""
    figure, axes = study.panels(2, 2, width=4.5, height=2.8, sharey="row")
    windows = [record for record in records if record["table"] == "windows"]
    used = max(record["C"] for record in windows)
    for panel, C in zip(axes[0], (0, used), strict=True):
        draw_windows(panel, [record for record in windows if record["C"] == C])
        panel.set_title(f"C = {C}", fontsize="medium")
    ticks = (0.001, 0.01, LITTLE, 1, 10)
    axes[0, 0].set_yticks([LEAST, *ticks], [f"≤ {LEAST:f}".rstrip("0"), *map(str, ticks)])
    axes[0, 0].set_ylabel("added to the exact score's\ndivergence (nats)")

    sampler = [record for record in records if record["table"] == "sampler"]
    for panel, rule in zip(axes[1], STYLES, strict=True):
        draw_sampler(panel, [record for record in sampler if record["rule"] == rule])
        panel.set_title(rule, fontsize="medium")
        study.plain_ticks(panel.xaxis)
    study.plain_ticks(axes[1, 0].yaxis)
    axes[1, 0].set_ylabel("divergence from\nthe truth (nats)")
    axes[1, 0].legend(**study.LEGEND)
    study.legend(figure, axes[0, 0], loc="outside upper center", ncols=5)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes tables and figure, returns the tables."""
    records = study.evaluate_all(out / "pseudo_blanket.jsonl", list(cells(profile)), evaluate)
    text = "\n\n".join(
        (
            f"Trajectories of {profile.length} states, {profile.middle[2]} steps, tau = "
            f"{profile.middle[4]:g}; nats from the truth.",
            by_windows(records, "windows"),
            f"Posteriors, every {EVERY}th state observed with a standard deviation of {STD}, "
            f"gamma = {GAMMA}.",
            by_windows(records, "posterior"),
            f"T = {profile.middle[0]:g}, k = {profile.middle[1]}: exact / centre / junction.",
            by_sampler(records),
        )
    )
    return study.write(out, "pseudo_blanket", text, draw_figure(records))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/pseudo_blanket")
