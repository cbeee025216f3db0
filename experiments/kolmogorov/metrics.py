"""What a posterior is judged by. All numbers but ratios are those of velocities."""

__all__ = ["NUMBERS", "measure"]

from typing import Any

import torch
from torch import Tensor

from sda_fast.evaluation import crps, rmse, spread

from .scene import Scene
from .simulator import Simulator

#: What is measured, in the order of reports.
NUMBERS = (
    "rmse",
    "unseen",
    "climatology",
    "spread",
    "crps",
    "misfit",
    "misfit of the truth",
    "inconsistency",
    "inconsistency of the truth",
    "modes",
    "second",
)


def measure(scene: Scene, x: Tensor, simulator: Simulator) -> dict[str, Any]:
    """Scores posterior trajectories (B, L, 2, N, N).

    Where the observation does not say by how much it was shifted, each trajectory is first shifted
    as explains the observation best.

    Returns:
        `rmse` of the ensemble's mean, and beside it `climatology`, that of no velocity at all;
        `unseen`, the RMSE where nothing was observed, in the cases that have such places; `spread`;
        `crps`, the fair one; `misfit`, root-mean-square of y - A(x) in units of its noise, and the
        truth's; `inconsistency`, see :meth:`Simulator.inconsistency`, and the truth's; and of a
        shifted observation `modes`, the shift that explains each member best, and `second`, the
        least misfit by another shift.
    """
    truth, modes = scene.truth, scene.modes(x)
    misfit = scene.misfit(x).sort(dim=1).values
    aligned = torch.stack([scene.likelihood.shift(*pair) for pair in zip(x, modes, strict=True)])
    mean = aligned.mean(dim=0)

    numbers: dict[str, Any] = {
        "rmse": rmse(mean, truth),
        "climatology": rmse(torch.zeros_like(truth), truth),
        "spread": spread(aligned),
        "crps": float(crps(aligned, truth, fair=True).mean()),
        "misfit": float(misfit[:, 0].square().mean().sqrt()),
        "misfit of the truth": float(scene.misfit(truth[None]).min()),
        "inconsistency": simulator.inconsistency(x),
        "inconsistency of the truth": simulator.inconsistency(truth),
    }
    if scene.case.seen is not None:
        unseen = scene.y.isnan()
        if unseen.shape != truth.shape:  # of an instrument that sees little: states without any
            unseen = unseen.flatten(1).all(dim=1)
        numbers["unseen"] = rmse(mean[unseen], truth[unseen])
    if scene.case.shifts > 1:
        numbers["modes"] = modes.tolist()
        numbers["second"] = float(misfit[:, 1].min())

    return numbers
