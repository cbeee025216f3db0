r"""Judges a prior of Kolmogorov flow against simulations that it was not trained on.

    python -m experiments.kolmogorov.prior --data kolmogorov-32.h5

Trajectories of the prior and as many of the data's split "test", one half of it, are each compared
with the other half. What is said of the second comparison is the floor: how far apart simulations
are from simulations, for so few of them.

    spectrum         log-spectral distance of energies, in decibels
    vorticity        Wasserstein distance of histograms, over the standard deviation
    divergence       root mean square, on the coarse grid, where it is not zero
    correlation      largest difference of temporal correlations, at lags of up to 8 states
    inconsistency    with the simulator after one interval, as root-mean-square of velocities
    enstrophy

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 4.2
    | https://arxiv.org/abs/2306.10574
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sda_fast.data import Trajectories
from sda_fast.io import atomic_write, read_record
from sda_fast.systems import flow

from .drawing import Row, draw, largest, picture, save
from .sampling import Settings, add_options, draw_trajectories, read_options
from .simulator import Simulator

LAGS = 9


def held_out(data: Trajectories, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Returns trajectories of the two halves of a data set's split "test": of the first, as many
    as samples are drawn, of the second all, in pieces of `length` states."""
    test = data.split("test")
    middle = len(test) // 2
    if middle < 1:
        raise ValueError(f"{data.path} must have two trajectories to test, but has {len(test)}")

    pieces = data.shape[1] // length
    first, second = (
        torch.stack([data[n, i * length : (i + 1) * length] for i in range(pieces) for n in half])
        for half in (test[:middle], test[middle:])
    )
    return first[:samples], second


def vorticity_distance(x: Tensor, y: Tensor) -> float:
    """Returns the Wasserstein distance of two fields' values of vorticity, over the standard
    deviation of the second's: in one dimension, the mean difference of their quantiles."""
    quantiles = (torch.arange(1000) + 0.5) / 1000
    a, b = (torch.from_numpy(flow.vorticity(z).numpy().ravel()) for z in (x, y))
    a, b = (z.sort().values[(quantiles * len(z)).long()] for z in (a, b))
    return float((a - b).abs().mean() / flow.vorticity(y).std())


def compare(x: Tensor, reference: Tensor, simulator: Simulator) -> dict[str, float]:
    """Compares trajectories (B, L, 2, N, N) with others."""
    lags = min(LAGS, x.shape[1])
    a, b = (flow.temporal_correlation(z)[:lags] for z in (x, reference))
    return {
        "spectrum": flow.log_spectral_distance(x, reference),
        "vorticity": vorticity_distance(x, reference),
        "divergence": float(flow.divergence(x).square().mean().sqrt()),
        "correlation": float((a - b).abs().max()),
        "inconsistency": simulator.inconsistency(x[:3]),
        "enstrophy": float(flow.enstrophy(x).mean()),
    }


def draw_statistics(path: Path, sets: dict[str, Tensor], dt: float) -> None:
    """Draws energy spectra, histograms of vorticity and temporal correlations."""
    figure = Figure(figsize=(9, 2.6), dpi=100, layout="constrained")
    spectrum, histogram, correlation = figure.subplots(1, 3)
    n = next(iter(sets.values())).shape[-1]

    for (name, x), style in zip(sets.items(), ("-", "k--"), strict=True):
        energy = flow.energy_spectrum(x.flatten(0, 1)).mean(dim=0)[1 : n // 2]
        spectrum.loglog(range(1, n // 2), energy, style, label=name)
        values = flow.vorticity(x).flatten().numpy()
        histogram.hist(values, 60, range=(-20, 20), density=True, histtype="step", log=True,
                       color="black" if "k" in style else None, ls=style[-2:])  # fmt: skip
        r = flow.temporal_correlation(x)[:LAGS]
        correlation.plot([dt * lag for lag in range(len(r))], r, style)

    for axis, label in (
        (spectrum, "wavenumber"),
        (histogram, "vorticity"),
        (correlation, "time between states"),
    ):
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    spectrum.set_title("energy", fontsize="medium")
    histogram.set_title("density", fontsize="medium")
    correlation.set_title("correlation", fontsize="medium")
    spectrum.legend(frameon=False, fontsize="small")
    save(path, picture(figure))


def judge(
    data: Path, out: Path, settings: Settings, samples: int, length: int, progress: bool = True
) -> dict[str, dict[str, float]]:
    """Draws samples, compares, and writes `prior.json`, `prior.png` and `prior-statistics.png`.

    Returns:
        The numbers of the samples and of the held-out trajectories.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = read_record(settings.prior)
    trajectories = Trajectories(data, system="kolmogorov")
    simulator = Simulator(record["shape"][-1], settings.size)
    x = draw_trajectories(settings, samples, length, progress=progress)
    like, reference = held_out(trajectories, samples, length)
    numbers = {
        "samples": compare(x, reference, simulator),
        "held-out": compare(like, reference, simulator),
    }

    scale = largest(flow.vorticity(reference))
    shown = [Row("simulated", flow.vorticity(z), scale) for z in like[:2]]
    shown += [Row("sampled", flow.vorticity(z), scale) for z in x[:3]]
    draw(out / "prior.png", shown, simulator.dt)
    draw_statistics(
        out / "prior-statistics.png", {"samples": x, "held-out": reference}, simulator.dt
    )
    result = {
        **asdict(settings),
        "iteration": record["training"]["iteration"],
        "samples": samples,
        "length": length,
        "numbers": numbers,
    }
    atomic_write(out / "prior.json", (json.dumps(result, indent=1) + "\n").encode())

    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description="Judges a prior of Kolmogorov flow.")
    parser.add_argument("--data", type=Path, required=True, help="the data set")
    parser.add_argument("--out", type=Path, default=Path("runs/kolmogorov"), help="folder to write")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--length", type=int, default=14, help="states of a sample")
    add_options(parser)
    parser.set_defaults(corrections=3)
    arguments = parser.parse_args()

    numbers = judge(
        arguments.data,
        arguments.out,
        read_options(arguments),
        arguments.samples,
        arguments.length,
    )
    print(f"{'':16}{'samples':>10}{'held-out':>10}")
    for name, value in numbers["samples"].items():
        print(f"{name:16}{value:10.3f}{numbers['held-out'][name]:10.3f}")


if __name__ == "__main__":
    main()
