"""A case, from the truth to its figure, animation and numbers."""

__all__ = ["assimilate"]

import io
import json
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sda_fast.io import atomic_write, read_record

from .cases import CASES
from .drawing import animate, draw, rows
from .metrics import measure
from .sampling import Settings, draw_trajectories
from .scene import make_scene
from .simulator import Simulator


@cache
def simulate(seen: int, size: int, seed: int) -> tuple[Simulator, Tensor]:
    """Returns a simulator and a truth as long as any case needs."""
    simulator = Simulator(seen, size)
    return simulator, simulator.truth(max(case.length for case in CASES.values()), seed)


def assimilate(
    name: str,
    out: Path,
    settings: Settings,
    *,
    members: int | None = None,
    gamma: float | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs a case and writes `NAME.png`, `NAME.gif`, `NAME.json` and, with truth, observation and
    members, `NAME.npz`.

    Arguments:
        name: One of :data:`CASES`.
        out: The folder to write to.
        settings: How the posterior is drawn.
        members: The number of its trajectories, by default the case's.
        gamma: The guidance's, by default the case's.
        progress: Whether to show a progress bar.

    Returns:
        The settings and the numbers, as in the JSON file.
    """
    case = CASES[name]
    members = case.members if members is None else members
    gamma = case.gamma if gamma is None else gamma
    out.mkdir(parents=True, exist_ok=True)

    record = read_record(settings.prior)
    simulator, truth = simulate(record["shape"][-1], settings.size, settings.seed)
    scene = make_scene(case, truth[: case.length], settings.seed)

    began = time.perf_counter()
    x = draw_trajectories(
        settings,
        members,
        case.length,
        lambda prior, standard: scene.guide(prior, standard, gamma),
        progress,
    )
    result = {
        "case": name,
        **asdict(settings),
        "iteration": record["training"]["iteration"],
        "members": members,
        "gamma": gamma,
        "observed": int((~scene.y.isnan()).sum()),
        "seconds": time.perf_counter() - began,
        **measure(scene, x, simulator),
    }

    shown = rows(scene, x)
    draw(out / f"{name}.png", shown, simulator.dt)
    animate(out / f"{name}.gif", shown)
    arrays = io.BytesIO()
    np.savez(arrays, truth=scene.truth, observation=scene.y, posterior=x)
    atomic_write(out / f"{name}.npz", arrays.getvalue())
    atomic_write(out / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())

    return result
