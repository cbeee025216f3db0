"""A case, from the truth to its figure, animation and numbers."""

__all__ = ["assimilate"]

import io
import json
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from statistics import fmean
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


def resumed(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the numbers of the truths that a run of the same settings has come to."""
    try:
        before = json.loads(path.read_text())
        return before.pop("each") if head.items() <= before.items() else []
    except (FileNotFoundError, ValueError, KeyError):
        return []


def average(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over truths; of what is no number, that of the first."""
    return {
        name: fmean(numbers[name] for numbers in each) if isinstance(value, float) else value
        for name, value in each[0].items()
    }


def assimilate(
    name: str,
    out: Path,
    settings: Settings,
    *,
    members: int | None = None,
    gamma: float | None = None,
    truths: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs a case and writes `NAME.json` and, of the first truth, `NAME.png`, `NAME.gif` and, with
    truth, observation and members, `NAME.npz`.

    What a run of the same settings has written already is kept: more truths are added to it.

    Arguments:
        name: One of :data:`CASES`.
        out: The folder to write to.
        settings: How the posterior is drawn.
        members: The number of its trajectories, by default the case's.
        gamma: The guidance's, by default the case's.
        truths: How many truths are assimilated, of seeds from that of the settings on.
        progress: Whether to show a progress bar.

    Returns:
        The settings, the means of the numbers over truths and, under "each", those of each truth,
        as in the JSON file.
    """
    case = CASES[name]
    record = read_record(settings.prior)
    head = {
        "case": name,
        **asdict(settings),
        "length": case.length,
        "iteration": record["training"]["iteration"],
        "members": case.members if members is None else members,
        "gamma": case.gamma if gamma is None else gamma,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    each = resumed(path, head)
    result = head | {"truths": len(each)} | (average(each) if each else {}) | {"each": each}

    for seed in range(settings.seed + len(each), settings.seed + truths):
        simulator, truth = simulate(record["shape"][-1], settings.size, seed)
        scene = make_scene(case, truth[: case.length], seed)

        began = time.perf_counter()
        x = draw_trajectories(
            replace(settings, seed=seed),
            head["members"],
            case.length,
            lambda prior, standard, scene=scene: scene.guide(prior, standard, head["gamma"]),
            progress,
        )
        seconds = time.perf_counter() - began
        observed = int((~scene.y.isnan()).sum())
        each.append({"observed": observed, "seconds": seconds, **measure(scene, x, simulator)})

        if seed == settings.seed:
            shown = rows(scene, x)
            draw(out / f"{name}.png", shown, simulator.dt, case.shown)
            animate(out / f"{name}.gif", shown)
            arrays = io.BytesIO()
            np.savez(arrays, truth=scene.truth, observation=scene.y, posterior=x)
            atomic_write(out / f"{name}.npz", arrays.getvalue())

        result = head | {"truths": len(each), **average(each), "each": each}
        atomic_write(path, (json.dumps(result, indent=1) + "\n").encode())

    return result
