r"""The paper's first result: posteriors of Lorenz-63 against a particle filter.

    python -m experiments.lorenz.posterior --quick --out runs/lorenz

A truth of 65 states is observed in its first coordinate, every 8th state with a standard deviation
of 0.05 ("lo") or every state with 0.25 ("hi"), in standardised units. Posteriors by the shipped
priors, by the rule of composition, the number C of corrections and their amplitude tau, are set
beside trajectories of a bootstrap particle filter of 16384 particles. A second, independent run of
it gives the floor, what an exact method would score, and an ensemble Kalman smoother a peer.

    log prior        E log p(x_2:L | x_1), that of the truth's law is near 82
    log likelihood   E log p(y | x)
    W1, energy       distances to the particle filter's trajectories, in physical units
    coverage         of the truth by the central 90 % of the members
    lost             members that left the attractor by 10 standard deviations, not scored

Each cell's numbers are kept in `posterior.jsonl` as soon as they are known, and a run that is
repeated with the same folder goes on where it ended. At the end `posterior.json` and `posterior.md`
hold the means over truths.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 4.1
    | https://arxiv.org/abs/2306.10574
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from sda_fast import VPSDE, GaussianScore, Junction, NoisyLorenz63, load_prior, sample
from sda_fast.composition import Composition
from sda_fast.evaluation import (
    Observation,
    coverage,
    energy_distance,
    ensemble_kalman_smoother,
    log_prior,
    particle_filter,
    wasserstein,
)
from sda_fast.io import atomic_write

LENGTH, GAMMA, PARTICLES, SPIN_UP = 65, 3e-2, 16384, 1024

# A member with a standardised element beyond this is lost: one of them would be all of a mean.
LOST = 10.0

# every how many states, and how exactly, the first coordinate is observed
SETTINGS = {"lo": (8, 0.05), "hi": (1, 0.25)}

PRIORS: dict[str, tuple[str, str | Composition]] = {
    "centre, k = 2": ("lorenz63", "centre"),
    "centre, w = 9": ("lorenz63-w9", "centre"),
    "junction, w = 9": ("lorenz63-w9", Junction(window=9, stride=4)),
}
FILTER, SMOOTHER = "particle filter", "ensemble Kalman"

METRICS = ("log_prior", "log_likelihood", "w1", "energy", "coverage", "lost")

chain = NoisyLorenz63(dt=0.025)


@dataclass(frozen=True)
class Profile:
    """What is run: all combinations."""

    truths: int
    members: int
    steps: int
    corrections: Sequence[int]
    taus: Sequence[float]


QUICK = Profile(truths=2, members=64, steps=64, corrections=(0, 1, 4), taus=(0.5,))
FULL = Profile(truths=4, members=256, steps=256, corrections=(0, 1, 2, 4, 8, 16), taus=(0.25, 0.5))


@dataclass(frozen=True)
class Cell:
    """One posterior. Steps, C and tau are those of the sampler, for other methods 0."""

    setting: str
    truth: int
    members: int
    method: str
    steps: int = 0
    C: int = 0
    tau: float = 0.0


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells, cheap ones first."""
    for truth in range(profile.truths):
        for setting in SETTINGS:
            for method in (FILTER, SMOOTHER):
                yield Cell(setting, truth, profile.members, method)
    for C in profile.corrections:
        for tau in profile.taus if C else (0.0,):  # tau does nothing where nothing is corrected
            for truth in range(profile.truths):
                for setting in SETTINGS:
                    for method in PRIORS:
                        yield Cell(setting, truth, profile.members, method, profile.steps, C, tau)


@dataclass(frozen=True, eq=False)
class Case:
    """A truth (L, 3), what was observed of it, and its posterior by the particle filter (N, L, 3).

    States are physical, the observation is standardised."""

    truth: Tensor
    observation: Observation
    reference: Tensor


def observe(x: Tensor) -> Tensor:
    """Returns the standardised first coordinate of physical states (*, 3)."""
    return chain.preprocess(x)[..., :1]


@cache
def attractor(seed: int) -> Tensor:
    """Draws states from the stationary law, one for each particle."""
    generator = Generator().manual_seed(seed)
    x = chain.prior((PARTICLES,), generator=generator)
    return chain.trajectory(x, SPIN_UP, last=True, generator=generator)


@cache
def make_case(setting: str, seed: int, members: int) -> Case:
    """Simulates and observes a truth, and draws its posterior by the particle filter."""
    every, std = SETTINGS[setting]
    generator = Generator().manual_seed(seed)
    x = chain.trajectory(chain.prior(generator=generator), SPIN_UP, last=True, generator=generator)
    truth = chain.trajectory(x, LENGTH, generator=generator)
    y = torch.full((LENGTH, 1), math.nan)
    y[::every] = observe(truth)[::every]
    y += std * torch.randn(y.shape, generator=generator)
    observation = Observation(y, observe, std)

    return Case(truth, observation, filtered(observation, 1, seed, members))


def filtered(observation: Observation, run: int, seed: int, members: int) -> Tensor:
    """Draws physical trajectories by an independent run of the particle filter."""
    generator = Generator().manual_seed(1000 * run + seed)
    particles = particle_filter(chain, observation, attractor(run), generator=generator)
    return particles.trajectories(members, generator=generator)


def draw(cell: Cell, case: Case, device: str) -> Tensor:
    """Draws physical posterior trajectories, with shape (N, L, 3)."""
    if cell.method == FILTER:
        return filtered(case.observation, 2, cell.truth, cell.members)
    if cell.method == SMOOTHER:
        x = attractor(3)[: cell.members]
        generator = Generator().manual_seed(cell.truth)
        return ensemble_kalman_smoother(chain, case.observation, x, generator=generator)

    name, composition = PRIORS[cell.method]
    prior = load_prior(name, length=LENGTH, composition=composition, device=device)
    every, std = SETTINGS[cell.setting]
    y = case.observation.y[::every].to(device)
    guided = GaussianScore(y, lambda x: x[..., ::every, :1], std, prior, gamma=GAMMA)
    posterior = VPSDE(guided.to(device), prior.shape).to(device)
    options = {"steps": cell.steps, "corrections": cell.C, "tau": cell.tau or 1.0}

    return chain.postprocess(sample(posterior, (cell.members,), seed=cell.truth, **options).cpu())


def measure(x: Tensor, case: Case) -> dict[str, float]:
    """Scores physical trajectories (N, L, 3)."""
    kept = (chain.preprocess(x).abs() < LOST).all(dim=2).all(dim=1)
    lost = 1 - float(kept.double().mean())
    x = x[kept]
    if len(x) < 2:
        raise FloatingPointError(f"{lost:.0%} of the members left the attractor")

    return {
        "log_prior": (LENGTH - 1) * float(log_prior(chain, x.double()).mean()),
        "log_likelihood": float(case.observation.total_log_likelihood(x).mean()),
        "w1": wasserstein(x, case.reference),
        "energy": energy_distance(x, case.reference, unbiased=True),
        "coverage": coverage(x, case.truth),
        "lost": lost,
    }


def evaluate(cell: Cell, device: str) -> dict[str, Any]:
    """Returns a cell with its numbers, or with why there are none."""
    case = make_case(cell.setting, cell.truth, cell.members)
    began = time.perf_counter()
    try:
        x = draw(cell, case, device)
        seconds = time.perf_counter() - began
        return asdict(cell) | measure(x, case) | {"seconds": seconds}
    except FloatingPointError as error:
        return asdict(cell) | {"error": str(error)}


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, and writes and returns the table."""
    out.mkdir(parents=True, exist_ok=True)
    log = out / "posterior.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    done = {key(record): record for record in map(json.loads, lines)}
    wanted = list(cells(profile))

    for i, cell in enumerate(wanted, start=1):
        if key(asdict(cell)) in done:
            continue
        record = evaluate(cell, device)
        done[key(record)] = record
        lines.append(json.dumps(record))
        atomic_write(log, "".join(f"{line}\n" for line in lines).encode())
        print(f"{i}/{len(wanted)} {lines[-1]}", flush=True)

    rows = average([done[key(asdict(cell))] for cell in wanted])
    report = table(rows)
    atomic_write(out / "posterior.json", json.dumps(asdict(profile) | {"rows": rows}).encode())
    atomic_write(out / "posterior.md", f"{report}\n".encode())

    return report


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in Cell.__dataclass_fields__)


def average(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the means over truths, and how many of them diverged, in a table's order."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        group = tuple(record[name] for name in ("setting", "method", "steps", "C", "tau"))
        groups.setdefault(group, []).append(record)

    rows = []
    for (setting, method, steps, C, tau), group in groups.items():
        good = [record for record in group if "error" not in record]
        row = {"setting": setting, "method": method, "steps": steps, "C": C, "tau": tau}
        row |= {"truths": len(group), "diverged": len(group) - len(good)}
        for name in METRICS:
            row[name] = sum(r[name] for r in good) / len(good) if good else None
        rows.append(row)

    settings, methods = list(SETTINGS), [FILTER, SMOOTHER, *PRIORS]
    rows.sort(key=lambda r: (settings.index(r["setting"]), methods.index(r["method"])))

    return rows


def number(x: float) -> str:
    return f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Writes rows as Markdown. A row of the particle filter is the floor of its setting."""
    names = [name.replace("_", " ").replace("w1", "W1") for name in METRICS]
    head = ["", "", "C", "tau", "score evaluations", *names]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        evaluations = row["steps"] * (1 + row["C"])
        settings = (row["C"], row["tau"] or "", evaluations) if evaluations else ("", "", "")
        if row["w1"] is None:
            scores = ["diverged"] * len(METRICS)
        else:
            scores = [number(row[name]) for name in METRICS[:-2]]
            scores += [f"{row[name]:.0%}" for name in METRICS[-2:]]
        name = row["method"]
        if row["diverged"]:
            name += f" ({row['diverged']} of {row['truths']} diverged)"
        lines.append(f"| {' | '.join(map(str, (row['setting'], name, *settings, *scores)))} |")

    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Posteriors of Lorenz-63 and a particle filter's.")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="minutes on two cores")
    size.add_argument("--full", action="store_true", help="the paper's settings: for a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/lorenz"), help="folder of results")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    profile = QUICK if arguments.quick else FULL
    print("\n" + run(arguments.out, profile, arguments.device))


if __name__ == "__main__":
    main()
