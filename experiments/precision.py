r"""What the precision of a network's products does to noise estimates, and to posteriors.

    python -m experiments.precision --full --out runs/precision

The network is called under each of `torch.set_float32_matmul_precision`'s modes that differ here:
"highest", where products are float32, and "medium", where their factors are rounded to bfloat16 if
the processor multiplies such. Two tables come of it, in `precision.md`:

* the root mean square of the error of eps, and of its vector-Jacobian product relative to that
  itself, against the same network in float64, by diffusion time; beside it how far the network's
  estimate is from the noise that was added, which is what a user has to live with anyway;
* posteriors by both modes with the same seeds, as means over truths with the standard error of the
  paired difference, beside the difference that another seed makes.

Priors of Lorenz-63 are residual MLPs, which round only the factors of products; that of Kolmogorov
flow is a U-Net, which rounds whole fields. Posteriors of the first are sampled by the preset "fast"
(see :mod:`experiments.lorenz.posterior` for the scores), of the second by "draft", as good there at
half the cost (see :mod:`experiments.front_flow`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from sda_fast import VPSDE, Standardisation, load_prior, preset, sample
from sda_fast.score import sampling
from sda_fast.training import LEVELS

from . import front_flow, study
from .kolmogorov.assimilation import simulate
from .lorenz import cases
from .lorenz.cases import JUNCTION
from .lorenz.posterior import SETTINGS
from .study import Record, number

MODES = ("highest", "medium")
FLOW = "Kolmogorov, U-Net"
STATES = 8  # of a trajectory of the flow, whose simulated truths are four such and more

METRICS = {"log_prior": "log prior", "w1": "W1", "energy": "energy", "rmse": "RMSE", "crps": "CRPS"}
FLOW_METRICS = {
    "rmse": "RMSE",
    "crps": "CRPS",
    "misfit": "misfit",
    "inconsistency": "inconsistency",
    "spectrum": "spectrum, dB",
}


@dataclass(frozen=True)
class Extent:
    """How much is run of one system.

    Arguments:
        trajectories: The number of trajectories whose noise is estimated.
        truths: The number of truths of posteriors.
        members: The number of members of a posterior.
        grid: The number of points along each axis that the flow is simulated on.
    """

    trajectories: int
    truths: int
    members: int
    grid: int | None = None


@dataclass(frozen=True)
class Profile:
    """What is run."""

    lorenz: Extent
    flow: Extent


QUICK = Profile(
    lorenz=Extent(trajectories=16, truths=2, members=16),
    flow=Extent(trajectories=1, truths=1, members=2, grid=64),
)
FULL = Profile(
    lorenz=Extent(trajectories=64, truths=4, members=256),
    flow=Extent(trajectories=4, truths=4, members=4, grid=256),
)


@dataclass(frozen=True)
class Estimate:
    """The noise estimates of a prior at a time, in one precision."""

    prior: str
    mode: str
    t: float
    trajectories: int
    grid: int | None = None


@dataclass(frozen=True)
class Posterior:
    """One posterior, in one precision."""

    setting: str
    truth: int
    seed: int
    mode: str
    members: int
    grid: int | None = None


@dataclass(frozen=True)
class Prior:
    """A prior, and what it is a prior of.

    Arguments:
        load: Returns it.
        simulate: Returns as many standardised trajectories (N, L, *state) as an estimate asks for.
    """

    load: Callable[[], VPSDE]
    simulate: Callable[[Estimate, Generator], Tensor]


def simulate_lorenz(cell: Estimate, generator: Generator) -> Tensor:
    """Simulates trajectories (N, L, 3) from states of the attractor."""
    x = cases.attractor(0)[: cell.trajectories]
    x = cases.chain.trajectory(x, cases.LENGTH, generator=generator).transpose(0, 1)
    return cases.chain.preprocess(x).contiguous()


def load_flow() -> VPSDE:
    """Loads the prior of the flow."""
    return load_prior(front_flow.PRIOR, length=STATES, composition=front_flow.RULE)


def simulate_flow(cell: Estimate, generator: Generator) -> Tensor:
    """Cuts a truth that no prior was trained on into trajectories (N, L, 2, 32, 32)."""
    assert cell.grid is not None
    _, truth = simulate(32, cell.grid, 0)
    x = truth.unflatten(0, (-1, STATES))[: cell.trajectories]
    return Standardisation.load(front_flow.PRIOR).preprocess(x)


#: The priors by the names that cells have of them.
PRIORS = {
    name: Prior(partial(cases.load, name), simulate_lorenz) for name in ("centre, k = 2", JUNCTION)
} | {FLOW: Prior(load_flow, simulate_flow)}


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """Sets torch's precision for a `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(mode)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@lru_cache(maxsize=1)  # the modes of one time follow each other
def reference(exact: Estimate) -> tuple[Tensor, ...]:
    """Returns noisy trajectories, the noise in them and cotangents v; and in float64, the mode of
    this cell, the estimate of the noise and J^T v."""
    generator = Generator().manual_seed(0)
    prior = PRIORS[exact.prior]
    x = prior.simulate(exact, generator)
    eps, v = (torch.randn(x.shape, generator=generator) for _ in range(2))

    sde = prior.load()
    t = torch.tensor(exact.t)
    noisy = sde.mu(t) * x + sde.sigma(t) * eps
    with torch.no_grad(), sampling():
        found, vjp = sde.eps.double().linearise(noisy.double(), t.double())
        return noisy, eps, v, found, vjp(v.double())


def estimate(cell: Estimate) -> Record:
    """Compares noise estimates with those of float64."""
    noisy, eps, v, expected, expected_pulled = reference(replace(cell, mode="float64"))
    sde = PRIORS[cell.prior].load()
    with torch.no_grad(), sampling(), precision(cell.mode):
        found, vjp = sde.eps.linearise(noisy, torch.tensor(cell.t))
        pulled = vjp(v)

    return {
        "eps": rms(found - expected),
        "vjp": rms(pulled - expected_pulled) / rms(expected_pulled),
        "network": rms(expected - eps),
    }


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def posterior(cell: Posterior) -> Record:
    """Scores a posterior."""
    if cell.setting == FLOW:
        assert cell.grid is not None
        mode = precision(cell.mode)
        return front_flow.score(
            preset("draft"), cell.truth, cell.members, cell.seed, mode, cell.grid
        )

    instrument = SETTINGS[cell.setting]
    case = cases.make_case(instrument, cell.truth, cell.members)
    with precision(cell.mode):
        guided = cases.guide(case, instrument, cases.load(JUNCTION))
        sde = VPSDE(guided, guided.sde.shape)
        x = sample(sde, (cell.members,), seed=cell.seed, **preset("fast").options)
    return cases.measure(cases.chain.postprocess(x), case)


def estimates(profile: Profile) -> list[Estimate]:
    """Lists the estimates of a profile."""
    extents = {prior: profile.flow if prior == FLOW else profile.lorenz for prior in PRIORS}
    return [
        Estimate(prior, mode, t, extent.trajectories, extent.grid)
        for prior, extent in extents.items()
        for t in LEVELS
        for mode in MODES
    ]


def posteriors(profile: Profile) -> list[Posterior]:
    """Lists the posteriors of a profile."""
    return [
        Posterior(setting, truth, seed, mode, extent.members, extent.grid)
        for settings, extent in ((SETTINGS, profile.lorenz), ((FLOW,), profile.flow))
        for truth in range(extent.truths)
        for setting in settings
        for seed, mode in ((0, "highest"), (0, "medium"), (1, "highest"))
    ]


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes the tables and returns them."""
    if device != "cpu":
        raise ValueError(f"the modes differ on the CPU, of which this study is, got {device!r}")
    first = study.evaluate_all(out / "estimates.jsonl", estimates(profile), estimate)
    second = study.evaluate_all(out / "posteriors.jsonl", posteriors(profile), posterior)

    return study.write(out, "precision", f"{estimates_table(first)}\n\n{posteriors_table(second)}")


def estimates_table(records: Sequence[Record]) -> str:
    """Writes a row for each prior and time."""
    rows = []
    for (prior, t), (high, low) in study.group(records, ("prior", "t")).items():
        errors = [f"{record[name]:.1e}" for name in ("eps", "vjp") for record in (high, low)]
        rows.append((prior, t, *errors, f"{high['network']:.2f}"))

    names = [f"{what}, {mode}" for what in ("eps", "gradient") for mode in MODES]
    return study.table(["prior", "t", *names, "estimate to noise"], rows)


def posteriors_table(records: Sequence[Record]) -> str:
    """Writes a row for each setting and score."""
    rows = []
    for (setting,), group in study.group(records, ("setting",)).items():
        runs = study.group(group, ("seed", "mode"))
        high, low, other = runs[0, "highest"], runs[0, "medium"], runs[1, "highest"]
        for name, title in (FLOW_METRICS if setting == FLOW else METRICS).items():
            means = (number(study.mean(each, name)) for each in (high, low))
            gaps = (paired(high, each, name) for each in (low, other))
            rows.append((setting, title, *means, *gaps))

    return study.table(["", "", *MODES, "difference by precision", "difference by seed"], rows)


def paired(records: Sequence[Record], others: Sequence[Record], name: str) -> str:
    """Writes the mean of the differences of two runs on the same truths, and its standard error."""
    pairs = zip(records, others, strict=True)
    gaps = [b[name] - a[name] for a, b in pairs if "error" not in a and "error" not in b]
    if not gaps:
        return number(None)
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / max(len(gaps) - 1, 1)
    return f"{mean:+.2g} ± {math.sqrt(variance / len(gaps)):.1g}"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    study.command("What the precision of products does.", run, QUICK, FULL, "runs/precision")
