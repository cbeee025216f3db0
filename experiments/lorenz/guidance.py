r"""The paper's fourth claim: guidance that knows how sure it is needs no tuning.

    python -m experiments.lorenz.guidance --full --out runs/guidance

The first coordinate of a truth of 65 states is observed at every 8th state, with several levels of
noise. One prior is guided by

    Gamma       a number gamma (Rozet & Louppe, 2023)
    spectral    the true covariance, from the spectrum of 4096 trajectories, plus a floor
    MMPS        the network's own Jacobian, by so many iterations (Rozet et al., 2024)
    DPS         a strength zeta, the norm being each sample's (Chung et al., 2023)

over a range of their strength, with corrections and, as DPS was published, without; all with and
without a bound of the denoised trajectory (`clip`), as the presets have. Each posterior is set
beside a particle filter's, whose second run is the floor. A guidance is stable where the
energy distance stays small over strengths and levels of noise alike.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 3.2
    | https://arxiv.org/abs/2306.10574
    | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
    | https://arxiv.org/abs/2209.14687
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Generator, nn

from sda_fast import VPSDE, DPSGaussianScore, MMPSGaussianScore, Spectrum
from sda_fast.data import simulate

from .. import study
from ..study import Record, number, percent
from . import cases
from .cases import FILTER, Case, Instrument

EVERY, TRAJECTORIES = 8, 4096
GAMMA, SPECTRAL, MMPS, DPS = "Gamma", "spectral", "MMPS", "DPS"


@dataclass(frozen=True)
class Profile:
    """What is run: every strength of every method at every level of noise, with corrections, and
    of some methods also without, with and without a bound of what is denoised."""

    truths: int
    members: int
    steps: int
    corrections: int
    tau: float
    stds: Sequence[float]
    strengths: dict[str, Sequence[float]] = field(default_factory=dict)
    uncorrected: Sequence[str] = (GAMMA, DPS)
    clips: Sequence[float | None] = (None, 5.0)


FULL = Profile(
    truths=1,
    members=32,
    steps=64,
    corrections=2,
    tau=0.5,
    stds=(0.02, 0.1, 0.5),
    strengths={
        GAMMA: (1e-3, 1e-2, 3e-2, 1e-1, 1.0),
        SPECTRAL: (1e-3, 1e-2),
        MMPS: (3,),
        DPS: (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    },
)
QUICK = replace(
    FULL,
    members=8,
    stds=(0.1,),
    strengths={GAMMA: (1e-2, 1e-1), SPECTRAL: (1e-2,), MMPS: (3,), DPS: (1.0, 10.0)},
)


@dataclass(frozen=True)
class Cell:
    """One posterior."""

    std: float
    truth: int
    members: int
    method: str
    strength: float = 0.0
    steps: int = 0
    C: int = 0
    tau: float = 0.0
    clip: float | None = None


def cells(profile: Profile) -> Iterator[Cell]:
    """Lists a profile's cells."""
    sampler = (profile.steps, profile.corrections, profile.tau)
    for truth in range(profile.truths):
        for std in profile.stds:
            yield Cell(std, truth, profile.members, FILTER)
        for method, strengths in profile.strengths.items():
            for clip in profile.clips:
                for strength in strengths:
                    for std in profile.stds:
                        cell = Cell(std, truth, profile.members, method, strength, *sampler, clip)
                        yield cell
                        if method in profile.uncorrected:
                            yield replace(cell, C=0, tau=0.0)


@cache
def spectrum(floor: float) -> Spectrum:
    """Estimates the prior's covariance from data."""
    generator = Generator().manual_seed(7)
    x = simulate(cases.chain, TRAJECTORIES, cases.LENGTH, generator=generator)
    return Spectrum.estimate(x, floor=floor)


def guide(cell: Cell, case: Case, prior: VPSDE) -> nn.Module:
    """Guides a prior by the method of a cell."""
    instrument = Instrument(EVERY, cell.std)
    y, A = instrument.readings(case.observation).to(prior.device), instrument.trajectory
    if cell.method == DPS:
        return DPSGaussianScore(y, A, prior, zeta=cell.strength, per_sample=True)
    if cell.method == MMPS:
        return MMPSGaussianScore(y, A, cell.std, prior, iterations=int(cell.strength))
    gamma = spectrum(cell.strength) if cell.method == SPECTRAL else cell.strength
    return cases.guide(case, instrument, prior, gamma=gamma)


def evaluate(cell: Cell, device: str = "cpu") -> Record:
    """Returns a cell's numbers."""
    case = cases.make_case(Instrument(EVERY, cell.std), cell.truth, 256)
    if cell.method == FILTER:
        x = cases.filtered(case.observation, 2, cell.truth, cell.members)
    else:
        guided = guide(cell, case, cases.load(device=device))
        options = cases.even(cell) | {"clip": cell.clip}
        x = cases.draw(guided, cell.members, seed=cell.truth, **options)

    record: Record = cases.measure(x, case)
    # 1 where the residuals are as large as the noise
    kept = cases.chain.preprocess(cases.kept(x))
    residual = kept[:, ::EVERY, :1] - case.observation.y[::EVERY]
    return record | {"residual": float(residual.square().mean().sqrt()) / cell.std}


METRICS = ("energy", "w1", "log_prior", "residual", "lost")


def tables(rows: Sequence[Record]) -> str:
    """Writes energy distance, residual and lost members by strength and noise."""
    stds = list(dict.fromkeys(row["std"] for row in rows))
    lines = []
    names = ("method", "C", "clip", "strength")
    for (method, C, clip, strength), group in study.group(rows, names).items():
        bound = "" if clip is None else f"{clip:g}"
        settings = ("", "", "") if method == FILTER else (C, bound, f"{strength:g}")
        line: list[Any] = [method, *settings]
        for name in ("energy", "w1", "residual"):
            line += ["diverged" if r[name] is None else number(r[name]) for r in group]
        line.append(percent(max((1.0 if r["lost"] is None else r["lost"]) for r in group)))
        lines.append(line)

    head = ["", "C", "clip", "strength"]
    for name in ("energy", "W1", "residual"):
        head += [f"{name}, std {std:g}" for std in stds]
    return study.table([*head, "lost, at most"], lines)


# colours, shapes and sizes: that of MMPS, a point, is to be seen behind a curve
STYLES = {
    GAMMA: (study.BLUE, "o", 5),
    SPECTRAL: (study.GREEN, "^", 5),
    MMPS: (study.PINK, "D", 7),
    DPS: (study.ORANGE, "s", 4),
}
DIVERGED = 1000.0  # about this height is marked what diverged


def draw_curve(panel: Any, points: Sequence[Record], method: str, C: int) -> None:
    """Draws the energy distance over a method's strengths, without corrections by hollow marks."""
    colour, shape, size = STYLES[method]
    style = {"color": colour, "ms": size, "mfc": colour if C else "white"}
    good = [r for r in points if r["energy"] is not None]
    lost = [r["strength"] for r in points if r["energy"] is None]
    panel.plot(lost, [DIVERGED * (1.6 if C else 0.6)] * len(lost), shape, **style)
    x, y = ([r[name] for r in good] for name in ("strength", "energy"))
    panel.plot(x, y, f"{shape}{'-' if C else ':'}", label=f"{method}, C = {C}", **style)


def draw_figure(rows: Sequence[Record]) -> Any:
    """Draws the energy distance against the strength, for each level of noise, without a bound
    of what is denoised and with it."""
    stds = list(dict.fromkeys(row["std"] for row in rows))
    clips = list(dict.fromkeys(row["clip"] for row in rows if row["method"] != FILTER))
    figure, axes = study.panels(
        len(clips), len(stds), width=9 / len(stds), height=2.5, sharex=True, sharey=True
    )

    for column, std in zip(axes.T, stds, strict=True):
        here = [row for row in rows if row["std"] == std]
        floor = next(row["energy"] for row in here if row["method"] == FILTER)
        for panel, clip in zip(column, clips, strict=True):
            panel.axhline(floor, color="black", lw=1, label=f"{FILTER}, second run")
            mine = [row for row in here if row["clip"] == clip and row["method"] != FILTER]
            for (method, C), points in study.group(mine, ("method", "C")).items():
                draw_curve(panel, points, method, C)
            bound = "no clip" if clip is None else f"clip = {clip:g}"
            panel.set_title(f"noise std {std:g}, {bound}", fontsize="medium")
        column[-1].set_xlabel("strength (gamma, floor, iterations, zeta)")
    first = axes[0, 0]
    first.set_xscale("log")
    first.set_yscale("symlog", linthresh=1)
    first.set_ylim(-0.6, 3 * DIVERGED)
    first.set_yticks([0, 1, 10, 100, DIVERGED], ["0", "1", "10", "100", "diverged"])
    for panel in axes[:, 0]:
        panel.set_ylabel("energy distance to the\nfilter's posterior")
    study.legend(figure, first, loc="outside lower center", ncols=4)

    return figure


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes table and figure, returns the table."""
    records = study.evaluate_all(
        out / "guidance.jsonl", list(cells(profile)), partial(evaluate, device=device)
    )
    rows = study.average(records, ("std", "method", "C", "clip", "strength"), METRICS)
    rows.sort(key=lambda row: (row["method"] != FILTER, -row["C"], row["clip"] or 0.0))
    return study.write(out, "guidance", tables(rows), draw_figure(rows))


if __name__ == "__main__":
    study.command(__doc__.splitlines()[0], run, QUICK, FULL, "runs/guidance")
