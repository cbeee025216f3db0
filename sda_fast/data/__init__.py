"""Training data: simulated trajectories, in memory or on disk, and the windows drawn from them."""

__all__ = [
    "Recipe",
    "Trajectories",
    "Windows",
    "draw_windows",
    "generate",
    "simulate",
    "simulate_block",
]

from .generation import generate
from .recipe import Recipe, simulate_block
from .simulation import draw_windows, simulate
from .trajectories import Trajectories
from .windows import Windows
