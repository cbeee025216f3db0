"""Small data sets to learn from, made without a solver."""

from pathlib import Path

import numpy as np

from sda_fast.data import Recipe
from sda_fast.data.storage import PartFile


def write_fields(path: Path, size: int = 8, length: int = 12, trajectories: int = 20) -> Path:
    """Writes "Kolmogorov" flows that are travelling waves u = 2 + sin(y - t), v = cos(x - 2 t),
    of random phases."""
    recipe = Recipe(
        "kolmogorov", {"size": size}, trajectories=trajectories, length=length, burn_in=0, block=5
    )
    generator = np.random.default_rng(0)
    grid = 2 * np.pi / size * (np.arange(size) + 0.5)
    t = np.arange(length)[:, None, None] / 3

    with PartFile(path, recipe) as file:
        for index in range(recipe.blocks):
            states = np.empty((len(recipe.rows(index)), length, 2, size, size), np.float32)
            for state in states:
                a, b = generator.uniform(0, 2 * np.pi, 2)
                state[:, 0] = 2 + np.sin(grid - t + a)
                state[:, 1] = np.cos(grid[:, None] - 2 * t + b)
            file.write(index, states)
        file.finish()

    return path
