"""What a data set is a function of, block by block of trajectories."""

__all__ = ["Recipe", "simulate_block"]

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..systems import CATALOGUE, MarkovChain, build_system
from ..systems.flow import coarsen


@dataclass(frozen=True)
class Recipe:
    """What a data set is a function of.

    Trajectories are simulated block by block: the randomness of block i is a function of the seed
    and of i, so that blocks can be made in any order, by any number of processes.

    Arguments:
        system: The name of the system in :data:`sda_fast.systems.CATALOGUE`.
        parameters: Those of its parameters that are not as in the catalogue.
        trajectories: The number n of trajectories.
        length: The number L of states of each. By default the catalogue's, as of the following two.
        burn_in: The number of transitions, before the first state, that forget the prior.
        block: The number of trajectories that are simulated together.
        coarsen: The factor by which fields are coarsened after they are simulated.
        seed: The seed of all randomness.

    Raises:
        ValueError: An argument is out of its range.
    """

    system: str
    parameters: dict[str, Any]
    trajectories: int = 1024
    length: int = None  # type: ignore[assignment]
    burn_in: int = None  # type: ignore[assignment]
    block: int = None  # type: ignore[assignment]
    coarsen: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.system not in CATALOGUE:
            raise ValueError(f"system must be one of {', '.join(CATALOGUE)}, got {self.system!r}")
        entry = CATALOGUE[self.system]

        object.__setattr__(self, "parameters", entry.complete(self.parameters))
        for name in ("length", "burn_in", "block"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(entry, name))

        for name in ("trajectories", "length", "block", "coarsen"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.burn_in < 0:
            raise ValueError(f"burn_in must not be negative, got {self.burn_in}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2^63 - 1, got {self.seed}")
        if self.coarsen > 1 and len(entry.dims) < 3:
            raise ValueError(f"coarsen must be 1 for {self.system}, got {self.coarsen}")

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the data set, (n, L, *state)."""
        chain = self.build()
        return (self.trajectories, self.length, *self.show(chain, chain.prior((0,))).shape[1:])

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.trajectories // self.block)

    def rows(self, index: int) -> range:
        """The trajectories of a block."""
        return range(index * self.block, min((index + 1) * self.block, self.trajectories))

    def build(self) -> MarkovChain:
        """Builds the system."""
        return build_system(self.system, **self.parameters)

    def show(self, chain: MarkovChain, x: Tensor) -> Tensor:
        """Returns what is kept of states: what is visible, coarsened."""
        x = chain.visible(x)
        return coarsen(x, self.coarsen) if self.coarsen > 1 else x

    def differences(self, other: "Recipe") -> list[str]:
        """Says in which options another recipe differs."""
        mine, theirs = self._options(), other._options()
        return [
            f"{key} is {mine.get(key)!r}, now {theirs.get(key)!r}"
            for key in {**mine, **theirs}
            if mine.get(key) != theirs.get(key)
        ]

    def _options(self) -> dict[str, Any]:
        options = asdict(self)
        return {**options.pop("parameters"), **options}


def simulate_block(recipe: Recipe, index: int) -> np.ndarray:
    """Simulates a block of trajectories, in physical units.

    Arguments:
        recipe: What to simulate.
        index: The number i of the block.

    Returns:
        The states, with shape (b, L, *state), in float32.

    Raises:
        RuntimeError: The simulation left the finite numbers.
    """
    seed = np.random.SeedSequence([recipe.seed, index]).generate_state(1, np.uint64)
    generator = Generator().manual_seed(int(seed[0]))
    chain, rows = recipe.build(), recipe.rows(index)
    states = torch.empty(len(rows), *recipe.shape[1:])

    x = chain.prior((len(rows),), generator=generator)
    x = chain.trajectory(x, recipe.burn_in, last=True, generator=generator)

    for i in range(recipe.length):
        x = chain.transition(x, generator=generator)
        states[:, i] = recipe.show(chain, x)

    if not bool(torch.isfinite(states).all()):
        raise RuntimeError(
            f"the simulation of {recipe.system} is not finite in block {index}: choose a smaller "
            "dt or more integration steps"
        )

    return states.numpy()
