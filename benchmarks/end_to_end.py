"""A posterior from start to end: the published recipe in eager PyTorch, and this package's presets.

    OMP_WAIT_POLICY=passive python -m benchmarks.end_to_end --threads 2

Lorenz-63, trajectories of 65 states, of which the first coordinate of every 8th is observed, by the
shipped weights. Codes take turns. Presets are sampled whole. Of the published recipe, 256 steps of
17 evaluations, which cost the same all of them, a few steps are timed and scaled to all. What each
posterior is worth is told by `experiments.front`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor

from sda_fast import VPSDE, GaussianScore, NoisyLorenz63, load_prior, ops, preset, sample
from sda_fast.data import simulate
from sda_fast.io import atomic_write
from sda_fast.observation import Subsample

from .published import Composed, Guided, posterior
from .text import seconds

LENGTH, EVERY, STD, GAMMA = 65, 8, 0.05, 3e-2
PUBLISHED = preset("published")


def observe(x: Tensor) -> Tensor:
    return x[..., ::EVERY, :1]


def observation() -> Tensor:
    """Simulates what is observed."""
    generator = Generator().manual_seed(0)
    x = simulate(NoisyLorenz63(dt=0.025), 1, LENGTH, generator=generator)[0]
    return observe(x) + STD * torch.randn(9, 1, generator=generator)


def eager(y: Tensor, members: int, steps: int) -> Callable[[], Tensor]:
    """Returns what takes a few steps of the published recipe."""
    prior = load_prior("lorenz63", length=LENGTH)
    network = prior.eps
    levels: dict[str, Any] = {"mu": prior.mu, "sigma": prior.sigma, "shape": prior.shape}
    inner = SimpleNamespace(eps=Composed(network.kernel, network.order), **levels)
    sde = SimpleNamespace(eps=Guided(y, observe, STD, inner, GAMMA), **levels)

    def draw() -> Tensor:
        with ops.backend("reference"):
            return posterior(sde, (members,), steps, PUBLISHED.corrections, PUBLISHED.tau)  # type: ignore[arg-type]

    return draw


def native(name: str, y: Tensor, members: int) -> Callable[[], Tensor]:
    """Returns what samples a preset."""
    recipe = preset(name, last=0.003)
    prior = load_prior("lorenz63-w13", length=LENGTH, composition=recipe.composition)
    A = Subsample(prior.shape, slice(None, None, EVERY), slice(0, 1))
    sde = VPSDE(GaussianScore(y, A, STD, prior, gamma=GAMMA), prior.shape)
    return lambda: sample(sde, (members,), seed=0, **recipe.options)


def measure(members: int, steps: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Returns the seconds of a clock and of the processor, round by round, of each code whole."""
    y = observation()
    runs = {"published, eager": eager(y, members, steps)}
    runs |= {name: native(name, y, members) for name in ("draft", "fast")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}

    for n in range(rounds + 1):  # the first one warms up
        for name, run in runs.items():
            scale = PUBLISHED.steps / steps if name.startswith("published") else 1.0  # type: ignore[operator]
            clock, processor = time.perf_counter(), time.process_time()
            run()
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            if n:
                times[name].append((scale * clock, scale * processor))
    return times


def table(times: dict[str, list[tuple[float, float]]]) -> str:
    """Writes medians as Markdown, and how many times faster than the published recipe."""
    head = "| | seconds | times faster | of the processor | times less |"
    lines = [head, "|---|---|---|---|---|"]
    base = [median(values) for values in zip(*times["published, eager"], strict=True)]
    for name, rounds in times.items():
        clock, processor = (median(values) for values in zip(*rounds, strict=True))
        lines.append(
            f"| {name} | {seconds(clock)} | {base[0] / clock:.0f} | {seconds(processor)} | "
            f"{base[1] / processor:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="of the published recipe's 256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for all rounds, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    times = measure(arguments.members, arguments.steps, arguments.rounds)
    if arguments.out is not None:
        atomic_write(arguments.out, (json.dumps(times, indent=1) + "\n").encode())
    print(f"{arguments.members} members, {arguments.threads} threads\n\n{table(times)}")


if __name__ == "__main__":
    main()
