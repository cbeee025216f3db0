r"""How posteriors degrade where the prior is of another system than the truth, and what mends it.

    python -m experiments.lorenz.misspecified --quick --out runs/lorenz

The truth follows the Lorenz system with rho off by 5, 10 and 20 % from the 28 that the shipped
prior was trained with, and is observed in its first coordinate at every 8th state with a standard
deviation of 0.05 ("lo") or at every state with 0.25 ("hi"), in standardised units. Set beside each
other are

    rho = 28         particle filter and prior believe in 28, whatever the truth
    true rho         both are told the truth's rho, the prior by its context
    rho inferred     both know that it is uniform between 20 and 36, and infer it with the states

and all are compared with another run of the filter that knows rho, and with the truth. The priors
that are told rho, or infer it, are trained here (:mod:`.parameter`). Of those that infer it the
second table gives the posterior of rho itself:

    mean ± std     over members, of a member's mean over its states
    W1             to that of the exact posterior
    drift          the standard deviation of a member's rho over its states, which should be 0

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), where prior and truth are of one system
    | https://arxiv.org/abs/2306.10574
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sda_fast import VPSDE, NoisyLorenz63
from sda_fast.evaluation import wasserstein

from .. import study
from ..study import Record, number
from . import cases, parameter
from .cases import Case, Instrument

SETTINGS = {"lo": Instrument(8, 0.05), "hi": Instrument(1, 0.25)}
RIGHT, WRONG, EXACT = "filter, true rho", "filter, rho = 28", "filter, rho inferred"
TOLD, OURS, JOINT = "ours, true rho", "ours, rho = 28", "ours, rho inferred"
METHODS = (RIGHT, TOLD, WRONG, OURS, EXACT, JOINT)
REFERENCE = 256  # members of the filters that all are compared with

METRICS = {
    "rmse": "RMSE",
    "spread_skill": "spread/RMSE",
    "coverage": "coverage",
    "energy": "energy",
    "w1": "W1",
    "log_likelihood": "log likelihood",
    "lost": "lost",
}


@dataclass(frozen=True)
class Profile:
    """What is run, and how the priors are trained that are told rho, or infer it."""

    settings: Sequence[str]
    truths: int
    members: int
    steps: int
    corrections: int
    tau: float
    errors: Sequence[int]  # of rho, in percent
    width: int
    iterations: int


QUICK = Profile(
    settings=("lo",),
    truths=2,
    members=32,
    steps=64,
    corrections=2,
    tau=0.5,
    errors=(-20, -10, -5, 0, 5, 10, 20),
    width=128,
    iterations=20_000,
)
FULL = Profile(
    settings=("lo", "hi"),
    truths=8,
    members=256,
    steps=256,
    corrections=4,
    tau=0.5,
    errors=(-20, -15, -10, -5, 0, 5, 10, 15, 20),
    width=256,
    iterations=200_000,
)


@dataclass(frozen=True)
class Cell:
    """One posterior. Steps, C and tau are those of the sampler, for filters 0."""

    setting: str
    error_of_rho: int
    truth: int
    members: int
    method: str
    steps: int = 0
    C: int = 0
    tau: float = 0.0


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    sampler = (profile.steps, profile.corrections, profile.tau)
    for error in profile.errors:
        for truth in range(profile.truths):
            for setting in profile.settings:
                for method in METHODS:
                    chosen = sampler if method in (TOLD, OURS, JOINT) else ()
                    yield Cell(setting, error, truth, profile.members, method, *chosen)


@cache
def make_system(error: int) -> NoisyLorenz63:
    """Makes the system whose rho is off by some percent."""
    if error == 0:
        return cases.chain
    return NoisyLorenz63(dt=cases.chain.dt, rho=28 * (1 + error / 100))


@cache
def make_case(setting: str, error: int, seed: int, members: int) -> Case:
    """Simulates and observes a truth, with its posterior by a filter that knows rho."""
    system = make_system(error)
    truth, generator = cases.simulate(seed, system)
    observation = cases.observe(SETTINGS[setting], truth, generator)
    reference = cases.filtered(observation, 1, seed, members, system)
    return Case(truth, observation, reference)


@cache
def posterior_of_rho(setting: str, error: int, seed: int) -> Tensor:
    """Draws rho (N, 1) from its exact posterior."""
    case = make_case(setting, error, seed, REFERENCE)
    return parameter.filtered(case.observation, 1, seed, REFERENCE)[:, 0, 3:]


def draw(cell: Cell, case: Case, prior: Callable[[str], VPSDE]) -> Tensor:
    """Draws physical posterior trajectories (N, L, 3), or with rho inferred (N, L, 4).

    Arguments:
        cell: The cell.
        case: What was observed.
        prior: A function from the method to its prior.
    """
    system = make_system(cell.error_of_rho)
    if cell.method in (RIGHT, WRONG):
        believed = system if cell.method == RIGHT else cases.chain
        return cases.filtered(case.observation, 2, cell.truth, cell.members, believed)
    if cell.method == EXACT:
        return parameter.filtered(case.observation, 2, cell.truth, cell.members)

    guided = cases.guide(case, SETTINGS[cell.setting], prior(cell.method))
    if cell.method == JOINT:
        return cases.sampled(guided, cell, system=parameter.system)
    context = parameter.context(system.rho).to(guided.sde.device) if cell.method == TOLD else None
    return cases.sampled(guided, cell, context=context)


def evaluate(cell: Cell, prior: Callable[[str], VPSDE]) -> Record:
    """Returns a cell's numbers."""
    case = make_case(cell.setting, cell.error_of_rho, cell.truth, REFERENCE)
    x = draw(cell, case, prior)
    system = make_system(cell.error_of_rho)
    record: Record = cases.measure(x[..., :3], case, system)
    if cell.method not in (EXACT, JOINT):
        return record

    exact = posterior_of_rho(cell.setting, cell.error_of_rho, cell.truth)
    rho = x[cases.inside(x[..., :3]), :, 3]
    inferred = rho.mean(dim=1, keepdim=True)
    return record | {
        "rho": system.rho,
        "rho_mean": float(inferred.mean()),
        "rho_std": float(inferred.std()),
        "rho_w1": wasserstein(inferred, exact),
        "rho_drift": float(rho.std(dim=1).mean()),
    }


def tables(records: Sequence[Record], rows: Sequence[Record]) -> str:
    """Writes the means over truths, and the posterior of rho of each truth."""
    lines = [
        (r["setting"], f"{r['error_of_rho']:+d} %", study.method(r), *study.scores(r, METRICS))
        for r in rows
    ]
    first = study.table(["", "error of rho", "", *METRICS.values()], lines)

    names, lines = ("setting", "error_of_rho", "truth"), []
    for (setting, error, truth), group in study.group(records, names).items():
        rho = f"{make_system(error).rho:.1f}"
        line = [setting, f"{error:+d} %", truth, rho]
        for method in (EXACT, JOINT):
            (r,) = [r for r in group if r["method"] == method]
            if "error" in r:
                line += ["–"] * 3
            else:
                line.append(f"{r['rho_mean']:.1f} ± {r['rho_std']:.1f}")
                line += [number(r["rho_w1"]), number(r["rho_drift"])]
        lines.append(line)
    head = ["", "error of rho", "truth", "its rho"]
    head += [f"{name}{who}" for who in (", filter", ", ours") for name in ("rho", "W1", "drift")]

    return f"{first}\n\n{study.table(head, lines)}"


def draw_figure(records: Sequence[Record], rows: Sequence[Record]) -> Any:
    """Draws the scores against the error of rho, and the posterior of rho against the truth's."""
    metrics = ("rmse", "spread_skill", "energy")
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = study.panels(len(settings), len(metrics) + 1, width=3.6, height=2.8)
    colours = dict.fromkeys((RIGHT, TOLD), study.BLUE) | dict.fromkeys((WRONG, OURS), study.RED)
    colours |= dict.fromkeys((EXACT, JOINT), study.GREEN)

    for line, setting in zip(axes, settings, strict=True):
        for panel, metric in zip(line, metrics, strict=False):
            for method in METHODS:
                mine = [r for r in rows if r["method"] == method and r["setting"] == setting]
                mine = [r for r in mine if r[metric] is not None]
                style = "s:" if method in (RIGHT, WRONG, EXACT) else "o-"
                x, y = [r["error_of_rho"] for r in mine], [r[metric] for r in mine]
                panel.plot(x, y, style, color=colours[method], ms=4, label=method)
            panel.set_xlabel("error of rho, %")
            panel.set_title(f"{setting}, {METRICS[metric]}", fontsize="medium")
            panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))

        for method, colour, shift in ((EXACT, study.GREY, -0.15), (JOINT, study.GREEN, 0.15)):
            mine = [r for r in records if r["method"] == method and r["setting"] == setting]
            mine = [r for r in mine if "error" not in r]
            x, y, std = ([r[name] for r in mine] for name in ("rho", "rho_mean", "rho_std"))
            x = [value + shift for value in x]
            line[-1].errorbar(x, y, std, fmt="o", color=colour, ms=4, lw=1, label=method)
        line[-1].axline((28, 28), slope=1, color="black", lw=0.8)
        line[-1].set(xlabel="rho", title="posterior of rho")
    for panel in (axes[0, 0], axes[0, -1]):
        panel.legend(fontsize="x-small", frameon=False)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Trains and evaluates what the folder does not hold yet, writes tables and figure."""

    @cache
    def prior(method: str) -> VPSDE:
        if method == OURS:
            return cases.load(device=device)
        folder, joint = out / "priors", method == JOINT
        return parameter.load(joint, folder, profile.width, profile.iterations, device)

    records = study.evaluate_all(
        out / "misspecified.jsonl", list(cells(profile)), partial(evaluate, prior=prior)
    )
    rows = study.average(records, ("setting", "error_of_rho", "method"), METRICS)
    return study.write(out, "misspecified", tables(records, rows), draw_figure(records, rows))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
