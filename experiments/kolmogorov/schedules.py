r"""Asks how much of a sample's error is the schedule's and how much the network's.

    python -m experiments.kolmogorov.schedules --data kolmogorov-32.h5

Single windows, which nothing has to be composed for, are drawn by several schedules, and compared
with simulations that the prior was not trained on. Then such simulations are noised up to a time t
and sampled back from there: what is lost on a way so short and finely stepped, the network lost.

Results are kept, one by one, in the folder; what is repeated goes on.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from experiments.study import evaluate_all, table, write
from sda_fast import Standardisation, load_prior
from sda_fast.data import Trajectories
from sda_fast.io import read_record
from sda_fast.systems import flow

from .prior import held_out, vorticity_distance
from .sampling import Settings, draw_trajectories
from .simulator import Simulator

SAMPLES = 16


@dataclass(frozen=True)
class Cell:
    """A schedule: times end + (begin - end) (1 - n / steps)^power.

    Arguments:
        steps: The number of steps.
        corrections: The number of corrections after each but the last.
        tau: Their amplitude.
        end: The last time; where it is above 0 the state is denoised.
        begin: The first time.
        power: Of the grid.
        bfloat16: Whether the network computes in bfloat16.
        back: Whether the state at the first time is a noised simulation.
    """

    steps: int = Settings.steps
    corrections: int = Settings.corrections
    tau: float = Settings.tau
    end: float = Settings.end
    begin: float = 1.0
    power: float = 1.0
    bfloat16: bool = True
    back: bool = False


#: What is tried, by what is said of it. The first is what the cases are drawn with.
CELLS = {
    "32 even steps, C = 1, tau = 1, to t = 0.01": Cell(),
    "in float32": Cell(bfloat16=False),
    "tau = 0.5, to t = 0": Cell(tau=0.5, end=0.0),
    "tau = 2": Cell(tau=2.0),
    "C = 3": Cell(corrections=3),
    "64 steps": Cell(steps=64),
    "64 steps, C = 0": Cell(steps=64, corrections=0),
    "quadratic grid": Cell(power=2.0),
    "quadratic grid from t = 0.9": Cell(power=2.0, begin=0.9),
    "back from t = 0.6, C = 0": Cell(30, 0, begin=0.6, end=0.0, power=2.0, back=True),
    "back from t = 0.3, C = 0": Cell(20, 0, begin=0.3, end=0.0, power=2.0, back=True),
    "back from t = 0.1, C = 0": Cell(16, 0, begin=0.1, end=0.0, back=True),
}


def noised(prior: str, x: Tensor, t: float) -> Tensor:
    """Noises physical trajectories up to a time."""
    process = load_prior(prior, length=x.shape[1])
    z = Standardisation.load(prior).preprocess(x)
    noise = torch.randn(z.shape, generator=Generator().manual_seed(0))
    time = torch.tensor(t)
    return process.mu(time) * z + process.sigma(time) * noise


def evaluate(cell: Cell, data: Path, prior: str) -> dict[str, Any]:
    """Draws windows by a schedule and compares them with simulations."""
    record = read_record(prior)
    window, seen = 2 * record["network"]["order"] + 1, record["shape"][-1]
    like, reference = held_out(Trajectories(data, system="kolmogorov"), SAMPLES, window)
    if cell.back:
        reference = like  # what came back is compared with what went

    n = torch.arange(cell.steps + 1, dtype=torch.float64) / cell.steps
    times = cell.end + (cell.begin - cell.end) * (1 - n) ** cell.power
    options = {"x1": noised(prior, like, cell.begin)} if cell.back else {}
    settings = Settings(prior, cell.steps, cell.corrections, cell.tau, cell.end,
                        bfloat16=cell.bfloat16)  # fmt: skip
    x = draw_trajectories(
        settings, len(like), window, progress=False, **options, steps=times.clamp(0, 1)
    )

    spectra = [flow.energy_spectrum(z.flatten(0, 1)).mean(dim=0) for z in (x, reference)]
    ratio = spectra[0] / spectra[1]
    return {
        "evaluations": cell.steps + (cell.steps - 1) * cell.corrections + (cell.end > 0),
        "spectrum": flow.log_spectral_distance(x, reference),
        **{f"energy at {k}": float(ratio[k]) for k in (5, 10, 15) if k < len(ratio)},
        "energy": float(x.square().mean() / reference.square().mean()),
        "enstrophy": float(flow.enstrophy(x).mean() / flow.enstrophy(reference).mean()),
        "vorticity": vorticity_distance(x, reference),
        "inconsistency": Simulator(seen).inconsistency(x[:6]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares schedules on single windows.")
    parser.add_argument("--data", type=Path, required=True, help="the data set")
    parser.add_argument("--prior", default=Settings.prior, help="a file, or a name")
    parser.add_argument("--out", type=Path, default=Path("runs/kolmogorov"), help="folder to write")
    arguments = parser.parse_args()

    records = evaluate_all(
        arguments.out / "schedules.jsonl",
        list(CELLS.values()),
        lambda cell: evaluate(cell, arguments.data, arguments.prior),
    )
    columns = [name for name in records[0] if name not in Cell.__dataclass_fields__]
    rows = [
        [name, *(record[c] if c == "evaluations" else f"{record[c]:.3f}" for c in columns)]
        for name, record in zip(CELLS, records, strict=True)
    ]
    print(write(arguments.out, "schedules", table(["", *columns], rows)))


if __name__ == "__main__":
    main()
