r"""How posteriors degrade where the prior is of another system than the truth, and what mends it.

    python -m experiments.lorenz.misspecified --full --out runs/misspecified

The truth follows the Lorenz system with rho off by 5, 10 and 20 % from the 28 that the shipped
prior was trained with, and is observed in its first coordinate at every 8th state with a standard
deviation of 0.05, in standardised units. Set beside each other are

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

INSTRUMENT = Instrument(8, 0.05)
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
    "above": "above the floor",
    "log_likelihood": "log likelihood",
    "lost": "lost",
}


@dataclass(frozen=True)
class Profile:
    """What is run, and how the priors are trained that are told rho, or infer it."""

    truths: int
    members: int
    recipe: str
    errors: Sequence[int]  # of rho, in percent
    width: int
    iterations: int


FULL = Profile(
    truths=2,
    members=32,
    recipe="fast",
    errors=(-20, -10, -5, 0, 5, 10, 20),
    width=128,
    iterations=20_000,
)
QUICK = Profile(
    truths=1,
    members=16,
    recipe="fast",
    errors=(-20, 0, 20),
    width=64,
    iterations=2000,
)


@dataclass(frozen=True)
class Cell:
    """One posterior, ours by a recipe; width and iterations are those of a prior trained here."""

    error_of_rho: int
    truth: int
    members: int
    method: str
    recipe: str | None = None
    width: int | None = None
    iterations: int | None = None


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    trained = (profile.recipe, profile.width, profile.iterations)
    chosen = {TOLD: trained, OURS: (profile.recipe,), JOINT: trained}
    for error in profile.errors:
        for truth in range(profile.truths):
            for method in METHODS:
                yield Cell(error, truth, profile.members, method, *chosen.get(method, ()))


@cache
def make_system(error: int) -> NoisyLorenz63:
    """Makes the system whose rho is off by some percent."""
    if error == 0:
        return cases.chain
    return NoisyLorenz63(dt=cases.chain.dt, rho=28 * (1 + error / 100))


@cache
def make_case(error: int, seed: int) -> Case:
    """Simulates and observes a truth, with its posterior by a filter that knows rho."""
    system = make_system(error)
    truth, generator = cases.simulate(seed, system)
    observation = cases.observe(INSTRUMENT, truth, generator)
    reference = cases.filtered(observation, 1, seed, REFERENCE, system)
    return Case(truth, observation, reference)


@cache
def posterior_of_rho(error: int, seed: int) -> Tensor:
    """Draws rho (N, 1) from its exact posterior."""
    case = make_case(error, seed)
    return parameter.filtered(case.observation, 1, seed, REFERENCE)[:, 0, 3:]


def draw(cell: Cell, case: Case, prior: Callable[[Cell], VPSDE]) -> Tensor:
    """Draws physical posterior trajectories (N, L, 3), or with rho inferred (N, L, 4).

    Arguments:
        cell: The cell.
        case: What was observed.
        prior: A function from the cell to its prior.
    """
    system = make_system(cell.error_of_rho)
    if cell.method in (RIGHT, WRONG):
        believed = system if cell.method == RIGHT else cases.chain
        return cases.filtered(case.observation, 2, cell.truth, cell.members, believed)
    if cell.method == EXACT:
        return parameter.filtered(case.observation, 2, cell.truth, cell.members)

    guided = cases.guide(case, INSTRUMENT, prior(cell))
    options: dict[str, Any] = {"seed": cell.truth, **cases.RECIPES[str(cell.recipe)].options}
    if cell.method == JOINT:
        options["system"] = parameter.system
    elif cell.method == TOLD:
        options["context"] = parameter.context(system.rho).to(guided.sde.device)
    return cases.draw(guided, cell.members, **options)


def evaluate(cell: Cell, prior: Callable[[Cell], VPSDE]) -> Record:
    """Returns a cell's numbers."""
    case = make_case(cell.error_of_rho, cell.truth)
    x = draw(cell, case, prior)
    system = make_system(cell.error_of_rho)
    record: Record = cases.measure(x[..., :3], case, system)
    if cell.method not in (EXACT, JOINT):
        return record

    exact = posterior_of_rho(cell.error_of_rho, cell.truth)
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
        (f"{r['error_of_rho']:+d} %", study.method(r), *study.scores(r, METRICS)) for r in rows
    ]
    first = study.table(["error of rho", "", *METRICS.values()], lines)

    lines = []
    for (error, truth), group in study.group(records, ("error_of_rho", "truth")).items():
        line = [f"{error:+d} %", truth, f"{make_system(error).rho:.1f}"]
        for method in (EXACT, JOINT):
            (r,) = [r for r in group if r["method"] == method]
            if "error" in r:
                line += ["–"] * 3
            else:
                line.append(f"{r['rho_mean']:.1f} ± {r['rho_std']:.1f}")
                line += [number(r["rho_w1"]), number(r["rho_drift"])]
        lines.append(line)
    head = ["error of rho", "truth", "its rho"]
    head += [f"{name}{who}" for who in (", filter", ", ours") for name in ("rho", "W1", "drift")]

    return f"{first}\n\n{study.table(head, lines)}"


DRAWN = {"rmse": "RMSE of the mean", "spread_skill": "spread / RMSE", "energy": "energy distance"}
COLOURS = {
    **dict.fromkeys((RIGHT, TOLD), study.BLUE),
    **dict.fromkeys((WRONG, OURS), study.ORANGE),
    **dict.fromkeys((EXACT, JOINT), study.GREEN),
}


def style(method: str) -> dict[str, Any]:
    """Returns how a method is drawn: filters by dotted lines and hollow marks."""
    filtered = method in (RIGHT, WRONG, EXACT)
    shape = {"marker": "s", "ls": ":", "mfc": "white"} if filtered else {"marker": "o"}
    return {"color": COLOURS[method], "ms": 4, "label": method, **shape}


def draw_figure(records: Sequence[Record], rows: Sequence[Record]) -> Any:
    """Draws the scores against the error of rho, and the posterior of rho against the truth's."""
    figure, axes = study.panels(2, 2, width=4.5, height=2.6)
    *panels, last = axes.flat
    for panel, (metric, label) in zip(panels, DRAWN.items(), strict=True):
        for method in METHODS:
            mine = [r for r in rows if r["method"] == method and r[metric] is not None]
            x, y = ([r[name] for r in mine] for name in ("error_of_rho", metric))
            panel.errorbar(x, y, **style(method))
        panel.set_xlabel("error of rho (%)")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))

    for method, shift in ((EXACT, -0.15), (JOINT, 0.15)):
        mine = [r for r in records if r["method"] == method and "error" not in r]
        x, y, std = ([r[name] for r in mine] for name in ("rho", "rho_mean", "rho_std"))
        last.errorbar([value + shift for value in x], y, std, **style(method) | {"ls": "none"})
    last.axline((28, 28), slope=1, color="black", lw=0.8)
    last.set_xlabel("rho of the truth")
    last.set_ylabel("rho inferred, mean ± std")
    study.legend(figure, panels[0], loc="outside lower center", ncols=3)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Trains and evaluates what the folder does not hold yet, writes tables and figure."""

    def prior(cell: Cell) -> VPSDE:
        if cell.width is None or cell.iterations is None:
            return cases.load(device=device)
        joint = cell.method == JOINT
        return parameter.load(joint, out / "priors", cell.width, cell.iterations, device)

    records = study.evaluate_all(
        out / "misspecified.jsonl", list(cells(profile)), partial(evaluate, prior=prior)
    )
    records = cases.above_floor(
        records, ("error_of_rho", "truth"), lambda record: record["method"] == RIGHT
    )
    rows = study.average(records, ("error_of_rho", "method"), METRICS)
    return study.write(out, "misspecified", tables(records, rows), draw_figure(records, rows))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/misspecified")
