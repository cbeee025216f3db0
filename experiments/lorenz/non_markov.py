r"""Where hidden variables break the Markov property: does a larger window mend it, and how much?

    python -m experiments.lorenz.non_markov --quick --out runs/lorenz

The two-scale Lorenz-96 system of 8 slow sites, each with 4 fast ones that nobody sees. The slow
sites alone are a Markov chain where the coupling h is 0; with it, what they were before tells of
the fast ones, and so of what comes next. For each h, priors of windows of 2k + 1 slow states are
trained by :mod:`sda_fast.training`, alike but for k, and judged by

    unexplained   the share of the variance of a state's increments that a regression on the states
                  before leaves, quadratic in the last of them, affine in the others: what no window
                  tells of, whatever the network. That of h = 0 is what such a function cannot say
    energy        the energy distance of unconditional trajectories of 33 states to data
    step          that of their single steps (x_i, x_i+1)
    RMSE, CRPS, coverage of the slow sites, where 4 of 8 are observed at every 4th state with a
                  standard deviation of 0.1, over several truths

A second set of data gives the floor of both distances. All are in standardised units.

References:
    | Predictability: a problem partly solved (Lorenz, 1996)
    | Score-based Data Assimilation (Rozet & Louppe, 2023), whose section 3.1 assumes a Markov chain
    | https://arxiv.org/abs/2306.10574
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sda_fast import VPSDE, GaussianScore, load_prior, sample
from sda_fast.data import simulate
from sda_fast.evaluation import coverage, crps, energy_distance, rmse
from sda_fast.io import Standardisation
from sda_fast.training import Config, make_system, train

from .. import study
from ..study import Record, number, percent

SYSTEM, LENGTH, EVERY, STD, GAMMA = "lorenz96_two_scale", 33, 4, 0.1, 3e-2
SITES, FAST = 8, 4
MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a prior is trained and judged."""

    iterations: int
    width: int
    trajectories: int
    states: int
    members: int
    truths: int
    steps: int
    C: int
    tau: float


@dataclass(frozen=True)
class Profile:
    """What is run: all combinations of h and k."""

    couplings: Sequence[float]
    orders: Sequence[int]
    settings: Settings


QUICK = Profile(
    couplings=(0.0, 1.0),
    orders=(1, 2, 4),
    settings=Settings(
        iterations=4000,
        width=128,
        trajectories=128,
        states=512,
        members=64,
        truths=8,
        steps=64,
        C=2,
        tau=0.5,
    ),
)
FULL = Profile(
    couplings=(0.0, 0.5, 1.0, 2.0),
    orders=(1, 2, 3, 4, 8),
    settings=Settings(
        iterations=100_000,
        width=256,
        trajectories=2048,
        states=1024,
        members=512,
        truths=32,
        steps=256,
        C=4,
        tau=0.5,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Cell(Settings):
    """One prior, or of k = 0 the memory of the data."""

    h: float
    k: int


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    for h in profile.couplings:
        for k in (0, *profile.orders):
            yield Cell(h=h, k=k, **asdict(profile.settings))


def parameters(h: float) -> dict[str, Any]:
    """Returns the parameters of the system."""
    return {"n": SITES, "J": FAST, "h": h, "hidden": True}


@cache
def data(h: float, n: int, length: int, seed: int) -> Tensor:
    """Simulates slow sites (n, L, 8), in physical units."""
    chain = make_system(SYSTEM, **parameters(h))
    generator = Generator().manual_seed(seed)
    return simulate(chain, n, length, burn_in=512, generator=generator)


def memory(x: Tensor, lags: Sequence[int] = (1, 2, 3, 5, 9)) -> list[float]:
    """Returns the unexplained variance of increments, from the last states of trajectories.

    Arguments:
        x: Trajectories, with shape (n, L, D).
        lags: The numbers k' of states that predict.

    Returns:
        The share of the variance of the increments that is left.
    """
    most = max(lags)
    target = (x[:, most:] - x[:, most - 1 : -1]).flatten(0, 1).double()
    left = []
    for lag in lags:
        past = [x[:, most - j : x.shape[1] - j] for j in range(1, lag + 1)]
        last = past[0]
        squares = (last[..., :, None] * last[..., None, :]).flatten(2)
        upper = torch.triu_indices(x.shape[2], x.shape[2])
        squares = squares[..., upper[0] * x.shape[2] + upper[1]]
        features = torch.cat((torch.ones_like(last[..., :1]), squares, *past), dim=2)
        features = features.flatten(0, 1).double()
        solution = torch.linalg.lstsq(features, target).solution
        left.append(float((target - features @ solution).square().mean()))

    return [value / float(target.var(dim=0, correction=0).mean()) for value in left]


def prior(cell: Cell, folder: Path, device: str) -> tuple[VPSDE, Standardisation]:
    """Trains the prior of a cell, unless the folder holds it."""
    path = folder / f"h{cell.h:g}-k{cell.k}-{cell.iterations}-{cell.width}.safetensors"
    if not path.exists():
        config = Config(
            system=SYSTEM,
            parameters=parameters(cell.h),
            trajectories=cell.trajectories,
            states=cell.states,
            order=cell.k,
            width=cell.width,
            depth=4,
            iterations=cell.iterations,
            batch_size=128,
            ema=0.995,
            validation=1024,
        )
        folder.mkdir(parents=True, exist_ok=True)
        every = max(cell.iterations // 4, 1)
        train(config, path, resume=True, every=every, progress=False, device=device)

    return load_prior(path, length=LENGTH, device=device), Standardisation.load(path)


def evaluate(cell: Cell, folder: Path, device: str = "cpu") -> Record:
    """Returns a prior's numbers, or those of the data."""
    x = data(cell.h, cell.trajectories, LENGTH, 1)
    if cell.k == 0:
        a, b = (data(cell.h, cell.members, LENGTH, seed) for seed in (2, 3))
        std, mean = torch.std_mean(x, dim=(0, 1))
        a, b = ((y - mean) / std for y in (a, b))
        many = data(cell.h, cell.trajectories, 64, 4)
        return {MEMORY: memory(many), **distances(a, b)}

    sde, scale = prior(cell, folder, device)
    options: dict[str, Any] = {"steps": cell.steps, "corrections": cell.C, "tau": cell.tau or 1.0}
    drawn = sample(sde, (cell.members,), seed=0, **options).cpu()
    record: Record = distances(drawn, scale.preprocess(data(cell.h, cell.members, LENGTH, 2)))

    scores = []
    generator = Generator().manual_seed(5)
    for seed, truth in enumerate(scale.preprocess(data(cell.h, cell.truths, LENGTH, 6))):
        y = truth[::EVERY, ::2]
        y = (y + STD * torch.randn(y.shape, generator=generator)).to(device)
        guided = GaussianScore(y, lambda x: x[:, ::EVERY, ::2], STD, sde, gamma=GAMMA)
        posterior = VPSDE(guided, sde.shape).to(device)
        members = sample(posterior, (max(cell.members // 4, 4),), seed=seed, **options).cpu()
        scores.append(
            (
                rmse(members.mean(dim=0), truth),
                float(crps(members, truth, fair=True).mean()),
                coverage(members, truth),
            )
        )
    means = torch.tensor(scores).mean(dim=0).tolist()

    return record | dict(zip(("rmse", "crps", "coverage"), means, strict=True))


def distances(x: Tensor, y: Tensor) -> dict[str, float]:
    """Returns the energy distances of trajectories (n, L, D) and of their single steps."""
    every = slice(0, LENGTH - 1, 8)  # apart, so that the steps of one trajectory are like others
    steps = [torch.cat((z[:, :-1], z[:, 1:] - z[:, :-1]), dim=2)[:, every] for z in (x, y)]
    return {
        "energy": energy_distance(x, y, unbiased=True),
        "step": energy_distance(*(z.flatten(0, 1) for z in steps), unbiased=True),
    }


METRICS = ("energy", "step", "rmse", "crps", "coverage")


def tables(records: Sequence[Record]) -> str:
    """Writes the memory of the data, and the scores of the priors."""
    lines, rows = [], []
    for record in records:
        name = f"h = {record['h']:g}"
        if record["k"] == 0:
            lines.append((name, *(f"{share:.4f}" for share in record[MEMORY])))
            scores = [number(record["energy"]), f"{record['step']:.3f}", "", "", ""]
            rows.append((name, "data", *scores))
        elif "error" in record:
            rows.append((name, record["k"], *["diverged"] * len(METRICS)))
        else:
            scores = [number(record["energy"]), f"{record['step']:.3f}"]
            scores += [f"{record['rmse']:.3f}", f"{record['crps']:.3f}"]
            rows.append((name, record["k"], *scores, percent(record["coverage"])))

    head = ["unexplained, from", *(f"{n} states" for n in (1, 2, 3, 5, 9))]
    scores = ["", "k", "energy", "step", "RMSE", "CRPS", "coverage"]
    return f"{study.table(head, lines)}\n\n{study.table(scores, rows)}"


def draw_figure(records: Sequence[Record]) -> Any:
    """Draws the memory against the lag, and scores against k."""
    metrics = ("step", "energy", "rmse")
    figure, axes = study.panels(1, 1 + len(metrics), width=3.0)
    groups = study.group(records, ("h",))
    for ((h,), group), colour in zip(groups.items(), study.COLOURS, strict=False):
        of_data = next(r for r in group if r["k"] == 0)
        label = f"h = {h:g}"
        axes[0, 0].plot((1, 2, 3, 5, 9), of_data[MEMORY], "o-", color=colour, ms=4, label=label)
        good = [r for r in group if r["k"] > 0 and "error" not in r]
        for panel, metric in zip(axes[0, 1:], metrics, strict=True):
            panel.plot([r["k"] for r in good], [r[metric] for r in good], "o-", color=colour, ms=4)
            if metric in of_data:
                panel.axhline(of_data[metric], color=colour, lw=0.8, ls="--")
            panel.set(xlabel="k", title=metric)
    axes[0, 0].set(xlabel="states that predict", title="unexplained variance", yscale="log")
    axes[0, 0].legend(fontsize="x-small", frameon=False)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Trains and evaluates what the folder does not hold yet, writes tables and figure."""
    records = study.evaluate_all(
        out / "non_markov.jsonl",
        list(cells(profile)),
        partial(evaluate, folder=out / "priors", device=device),
    )
    return study.write(out, "non_markov", tables(records), draw_figure(records))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/lorenz")
