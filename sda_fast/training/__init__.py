"""Training: a window network learns to denoise windows of trajectories."""

__all__ = [
    "LEVELS",
    "Config",
    "denoising_error",
    "draw_samples",
    "read_config",
    "train",
]

from .config import Config
from .loop import train
from .loss import LEVELS, denoising_error
from .metrics import draw_samples
from .options import read_config
