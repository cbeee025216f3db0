"""Drawing trajectories of a prior, or of a posterior."""

__all__ = ["Settings", "add_options", "draw_trajectories", "read_options"]

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sda_fast import VPSDE, Guidance, Junction, Standardisation, load_prior, sample
from sda_fast.io import read_record


@dataclass(frozen=True)
class Settings:
    """How trajectories are drawn.

    Arguments:
        prior: The prior, a file or a name.
        steps: The number of predictor steps.
        corrections: The number of corrections after each but the last.
        tau: Their amplitude.
        end: The diffusion time at which the steps end, where the state is denoised.
        overlap: The number of states that neighbouring windows share.
        seed: The seed of truth, noise and sampler.
        size: The number of points along each axis of the simulator's grid.
        bfloat16: Whether the network computes in bfloat16.
    """

    prior: str = "kolmogorov-32"
    steps: int = 32
    corrections: int = 1
    tau: float = 1.0
    end: float = 0.01
    overlap: int = 2
    seed: int = 0
    size: int = 256
    bfloat16: bool = False

    @property
    def schedule(self) -> dict[str, Any]:
        """The arguments of :func:`sda_fast.sample` that say how evaluations are spent: even steps
        from t = 1, with corrections after all but the last."""
        if not 0 <= self.end < 1:
            raise ValueError(f"end must be at least 0 and below 1, but is {self.end}")
        return {
            "steps": torch.linspace(1, self.end, self.steps + 1, dtype=torch.float64),
            "corrections": [self.corrections] * (self.steps - 1) + [0],
            "tau": self.tau,
            "denoise": self.end > 0,
        }


def add_options(parser: ArgumentParser) -> None:
    """Adds an option for each setting."""
    parser.add_argument("--prior", default=Settings.prior, help="a file, or a name")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of the predictor")
    parser.add_argument("--corrections", type=int, default=Settings.corrections, help="a step")
    parser.add_argument("--tau", type=float, default=Settings.tau, help="of the corrections")
    parser.add_argument("--end", type=float, default=Settings.end, help="time of the last step")
    parser.add_argument("--overlap", type=int, default=Settings.overlap, help="of two windows")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--size", type=int, default=Settings.size, help="of the simulator's grid")
    parser.add_argument("--bfloat16", action="store_true", help="faster, where it is native")


def read_options(arguments: Namespace) -> Settings:
    return Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})


def draw_trajectories(
    settings: Settings,
    members: int,
    length: int,
    guide: Callable[[VPSDE, Standardisation], Guidance] | None = None,
    progress: bool = True,
    **options: Any,
) -> Tensor:
    """Draws physical trajectories by the junction rule, with shape (members, L, 2, N, N).

    Arguments:
        settings: How.
        members: The number of trajectories.
        length: The number L of their states.
        guide: Makes the guidance from the prior and its standardisation; without it, the
            trajectories are the prior's.
        progress: Whether to show a progress bar.
        options: More arguments of :func:`sda_fast.sample`, or others than the settings'.
    """
    window = 2 * read_record(settings.prior)["network"]["order"] + 1
    rule = Junction(window, window - settings.overlap)
    process = load_prior(settings.prior, length=length, composition=rule)
    standard = Standardisation.load(settings.prior)
    if guide is not None:
        process = VPSDE(guide(process, standard), process.shape)

    with torch.autocast("cpu", torch.bfloat16) if settings.bfloat16 else nullcontext():
        x = sample(
            process,
            (members,),
            seed=settings.seed,
            progress=progress,
            **settings.schedule | options,
        )

    return standard.postprocess(x)
