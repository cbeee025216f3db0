r"""What the precision of a network's products does to noise estimates, and to posteriors.

    python -m experiments.precision --full --out runs/precision

The network is called under each of `torch.set_float32_matmul_precision`'s modes that differ here:
"highest", where products are float32, and "medium", where their factors are rounded to bfloat16 if
the processor multiplies such. Two tables come of it, in `precision.md`:

* the root mean square of the error of eps, and of its vector-Jacobian product relative to that
  itself, against the same network in float64, by diffusion time; beside it how far the network's
  estimate is from the noise that was added, which is what a user has to live with anyway;
* posteriors of Lorenz-63 by both modes with the same seeds and the preset "fast" (see
  :mod:`experiments.lorenz.posterior` for the scores), as means over truths with the standard error
  of the paired difference, beside the difference that another seed makes.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from sda_fast import VPSDE, preset, sample
from sda_fast.score import sampling
from sda_fast.training import LEVELS

from . import study
from .lorenz import cases
from .lorenz.cases import JUNCTION
from .lorenz.posterior import SETTINGS
from .study import Record, number

MODES = ("highest", "medium")
METRICS = {"log_prior": "log prior", "w1": "W1", "energy": "energy", "rmse": "RMSE", "crps": "CRPS"}


@dataclass(frozen=True)
class Profile:
    """What is run."""

    trajectories: int
    truths: int
    members: int


QUICK = Profile(trajectories=16, truths=2, members=16)
FULL = Profile(trajectories=64, truths=4, members=256)


@dataclass(frozen=True)
class Estimate:
    """The noise estimates of a prior at a time, in one precision."""

    prior: str
    mode: str
    t: float
    trajectories: int


@dataclass(frozen=True)
class Posterior:
    """One posterior, in one precision."""

    setting: str
    truth: int
    seed: int
    mode: str
    members: int


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """Sets torch's precision for a `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(mode)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def estimate(cell: Estimate) -> Record:
    """Compares noise estimates with those of float64."""
    generator = Generator().manual_seed(0)
    x = cases.attractor(0)[: cell.trajectories]
    x = cases.chain.trajectory(x, cases.LENGTH, generator=generator).transpose(0, 1)
    x = cases.chain.preprocess(x).contiguous()
    eps, v = (torch.randn(x.shape, generator=generator) for _ in range(2))

    sde = cases.load(cell.prior)
    t = torch.tensor(cell.t)
    noisy = sde.mu(t) * x + sde.sigma(t) * eps
    exact = copy.deepcopy(sde.eps).double()
    with torch.no_grad(), sampling():
        expected, exact_vjp = exact.linearise(noisy.double(), t.double())
        with precision(cell.mode):
            found, vjp = sde.eps.linearise(noisy, t)
            pulled, expected_pulled = vjp(v), exact_vjp(v.double())

    return {
        "eps": rms(found - expected),
        "vjp": rms(pulled - expected_pulled) / rms(expected_pulled),
        "network": rms(expected - eps),
    }


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def posterior(cell: Posterior) -> Record:
    """Scores a posterior."""
    instrument = SETTINGS[cell.setting]
    case = cases.make_case(instrument, cell.truth, cell.members)
    with precision(cell.mode):
        guided = cases.guide(case, instrument, cases.load(JUNCTION))
        sde = VPSDE(guided, guided.sde.shape)
        x = sample(sde, (cell.members,), seed=cell.seed, **preset("fast").options)
    return cases.measure(cases.chain.postprocess(x), case)


def run(out: Path, profile: Profile, device: str = "cpu") -> str:
    """Evaluates what the folder does not hold yet, writes the tables and returns them."""
    if device != "cpu":
        raise ValueError(f"the modes differ on the CPU, of which this study is, got {device!r}")
    estimates = [
        Estimate(prior, mode, t, profile.trajectories)
        for prior in ("centre, k = 2", JUNCTION)
        for t in LEVELS
        for mode in MODES
    ]
    posteriors = [
        Posterior(setting, truth, seed, mode, profile.members)
        for truth in range(profile.truths)
        for setting in SETTINGS
        for seed, mode in ((0, "highest"), (0, "medium"), (1, "highest"))
    ]
    first = study.evaluate_all(out / "estimates.jsonl", estimates, estimate)
    second = study.evaluate_all(out / "posteriors.jsonl", posteriors, posterior)

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
        for name, title in METRICS.items():
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
