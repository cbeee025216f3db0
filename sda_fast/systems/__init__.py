"""Dynamical systems."""

__all__ = [
    "DampedSpring",
    "DiscreteODE",
    "Lorenz63",
    "Lorenz96",
    "LotkaVolterra",
    "MarkovChain",
    "NoisyLorenz63",
]

from .damped_spring import DampedSpring
from .lorenz63 import Lorenz63, NoisyLorenz63
from .lorenz96 import Lorenz96
from .lotka_volterra import LotkaVolterra
from .markov import DiscreteODE, MarkovChain
