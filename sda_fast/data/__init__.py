"""Training data: trajectories, simulated or a user's own, in memory or on disk, and windows."""

__all__ = [
    "Recipe",
    "Trajectories",
    "Windows",
    "draw_windows",
    "generate",
    "save_trajectories",
    "simulate",
    "simulate_block",
]

from .generation import generate
from .recipe import Recipe, simulate_block
from .saving import save_trajectories
from .simulation import draw_windows, simulate
from .trajectories import Trajectories
from .windows import Windows
