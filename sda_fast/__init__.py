"""Fast, dependable score-based data assimilation."""

__all__ = [
    "ACTIVATIONS",
    "Centre",
    "DPSGaussianScore",
    "DampedSpring",
    "DiscreteODE",
    "ForcedScoreUNet",
    "GaussianScore",
    "Guidance",
    "Junction",
    "LikelihoodScore",
    "KolmogorovFlow",
    "Lorenz63",
    "Lorenz96",
    "LotkaVolterra",
    "MCScoreNet",
    "MCScoreWrapper",
    "MMPSGaussianScore",
    "MarkovChain",
    "NoisyLorenz63",
    "Plan",
    "QuasiGeostrophic",
    "Recipe",
    "ResMLP",
    "ScoreNet",
    "ScoreUNet",
    "Spectrum",
    "Standardisation",
    "SubSubVPSDE",
    "SubVPSDE",
    "TimeEmbedding",
    "TwoScaleLorenz96",
    "UNet",
    "VPSDE",
    "__version__",
    "explain",
    "from_reference_state",
    "likelihood",
    "load_prior",
    "observation",
    "ops",
    "preset",
    "sample",
    "save_prior",
    "suggest",
]

from importlib.metadata import PackageNotFoundError, version

from . import likelihood, observation, ops
from .composition import Centre, Junction, Plan
from .guidance import (
    DPSGaussianScore,
    GaussianScore,
    Guidance,
    LikelihoodScore,
    MMPSGaussianScore,
    Spectrum,
)
from .io import Standardisation, load_prior, save_prior
from .kernels import ForcedScoreUNet
from .nn import ACTIVATIONS, ResMLP, TimeEmbedding, UNet
from .presets import Recipe, preset, suggest
from .reference_state import from_reference_state
from .sampler import explain, sample
from .schedule import VPSDE, SubSubVPSDE, SubVPSDE
from .score import MCScoreNet, MCScoreWrapper, ScoreNet, ScoreUNet
from .systems import (
    DampedSpring,
    DiscreteODE,
    KolmogorovFlow,
    Lorenz63,
    Lorenz96,
    LotkaVolterra,
    MarkovChain,
    NoisyLorenz63,
    QuasiGeostrophic,
    TwoScaleLorenz96,
)

try:
    __version__ = version("sda-fast")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"
