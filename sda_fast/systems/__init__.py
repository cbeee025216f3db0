"""Dynamical systems."""

__all__ = [
    "CATALOGUE",
    "DampedSpring",
    "DiscreteODE",
    "KolmogorovFlow",
    "Lorenz63",
    "Lorenz96",
    "LotkaVolterra",
    "MarkovChain",
    "NoisyLorenz63",
    "QuasiGeostrophic",
    "TwoScaleLorenz96",
    "build_system",
]

from .catalogue import CATALOGUE, build_system
from .damped_spring import DampedSpring
from .kolmogorov import KolmogorovFlow
from .lorenz63 import Lorenz63, NoisyLorenz63
from .lorenz96 import Lorenz96, TwoScaleLorenz96
from .lotka_volterra import LotkaVolterra
from .markov import DiscreteODE, MarkovChain
from .quasi_geostrophic import QuasiGeostrophic
