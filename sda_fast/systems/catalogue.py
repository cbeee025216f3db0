"""The systems by name, with the settings of the literature."""

__all__ = ["CATALOGUE", "Entry", "build_system"]

from dataclasses import dataclass
from numbers import Real
from typing import Any

from .damped_spring import DampedSpring
from .kolmogorov import KolmogorovFlow
from .lorenz63 import NoisyLorenz63
from .lorenz96 import Lorenz96, TwoScaleLorenz96
from .lotka_volterra import LotkaVolterra
from .markov import MarkovChain
from .quasi_geostrophic import QuasiGeostrophic


@dataclass(frozen=True)
class Entry:
    """A system, and how a data set of it is made by default.

    Arguments:
        system: The class.
        parameters: All its arguments.
        length: The number of states of a trajectory.
        burn_in: The number of transitions that forget the initial states.
        block: The number of trajectories that are simulated together.
        units: The units of states and times.
        dims: The names of a state's dimensions.
    """

    system: type[MarkovChain]
    parameters: dict[str, Any]
    length: int = 1024
    burn_in: int = 1024
    block: int = 64
    units: str = "dimensionless"
    dims: tuple[str, ...] = ("channel",)

    def complete(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Returns all arguments of the class, where only some are given.

        Raises:
            ValueError: There is no such argument, or its value is of another kind.
        """
        for name in parameters:
            if name not in self.parameters:
                raise ValueError(
                    f"a parameter of {self.system.__name__} must be one of "
                    f"{', '.join(self.parameters)}, got {name!r}"
                )
        return {
            name: self._convert(name, parameters.get(name, default), type(default))
            for name, default in self.parameters.items()
        }

    def _convert(self, name: str, value: Any, kind: type) -> Any:
        """Returns the value of an argument as what it is by default, nothing of it cut off."""
        number = isinstance(value, Real) and not isinstance(value, bool)
        if kind is bool and isinstance(value, bool):
            return value
        if kind is float and number:
            return float(value)
        if kind is int and number and float(value).is_integer():
            return int(value)
        wanted = {bool: "true or false", float: "a number", int: "an integer"}[kind]
        raise ValueError(f"{name} of {self.system.__name__} must be {wanted}, got {value!r}")


#: The systems that data sets are made of.
CATALOGUE: dict[str, Entry] = {
    # Lorenz (1963); observed every 0.025 and noisy as in Rozet & Louppe (2023)
    "lorenz63": Entry(
        NoisyLorenz63, {"sigma": 10.0, "rho": 28.0, "beta": 8 / 3, "dt": 0.025, "steps": 1}
    ),
    # Lorenz & Emanuel (1998): 0.05 is six hours
    "lorenz96": Entry(
        Lorenz96,
        {"n": 40, "F": 8.0, "dt": 0.05, "steps": 1},
        units="dimensionless; a time of 1 is 5 days",
    ),
    # Lorenz (1996), his two-scale model
    "lorenz96_two_scale": Entry(
        TwoScaleLorenz96,
        {
            "n": 36,
            "J": 10,
            "F": 10.0,
            "h": 1.0,
            "b": 10.0,
            "c": 10.0,
            "hidden": False,
            "dt": 0.05,
            "steps": 10,
        },
        units="dimensionless; a time of 1 is 5 days",
    ),
    "lotka_volterra": Entry(
        LotkaVolterra,
        {"alpha": 1.0, "beta": 1.0, "delta": 1.0, "gamma": 1.0, "dt": 0.01, "steps": 1},
        units="logarithms of numbers; times are dimensionless",
    ),
    "damped_spring": Entry(DampedSpring, {"dt": 0.01}),
    # Rozet & Louppe (2023), section 4.2
    "kolmogorov": Entry(
        KolmogorovFlow,
        {"size": 256, "dt": 0.2, "reynolds": 1000.0},
        length=64,
        burn_in=64,
        block=4,
        units="dimensionless, on a square of side 2 pi",
        dims=("channel", "x", "y"),
    ),
    # the defaults of pyqg-jax; the burn-in is four years, from weak noise
    "quasi_geostrophic": Entry(
        QuasiGeostrophic,
        {
            "size": 64,
            "dt": 86400.0,
            "steps": 12,
            "width": 1e6,
            "beta": 1.5e-11,
            "radius": 15e3,
            "delta": 0.25,
            "U": 0.025,
            "drag": 5.787e-7,
        },
        length=64,
        burn_in=1460,
        block=4,
        units="potential vorticity in 1/s; times in seconds",
        dims=("channel", "y", "x"),
    ),
}


def build_system(name: str, **parameters: Any) -> MarkovChain:
    """Builds a system of :data:`CATALOGUE`.

    Arguments:
        name: Its name.
        parameters: Those of its arguments that are not as in the catalogue.

    Raises:
        ValueError: There is no such system, it has no such parameter, or that is of another kind.
    """
    if name not in CATALOGUE:
        raise ValueError(f"system must be one of {', '.join(CATALOGUE)}, got {name!r}")

    entry = CATALOGUE[name]
    return entry.system(**entry.complete(parameters))
