"""Where windows come from: a system simulated in memory, or a data set on disk."""

__all__ = [
    "Simulated",
    "Source",
    "Stored",
    "differences_of_data",
    "identify",
    "open_source",
]

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from ..data import Trajectories, Windows, draw_windows, simulate
from ..data.storage import SIMULATION
from ..systems import CATALOGUE, build_system
from .config import Config

#: The windows x of a share of a batch, with shape (b, w, *state), the noise of the whole batch and
#: the number of states of each of its windows.
Batch = tuple[Tensor, Tensor, Tensor]


class Source(Protocol):
    """What is learnt from, standardised by the mean and the standard deviation of each channel."""

    state: tuple[int, ...]
    mean: Tensor
    std: Tensor
    identity: dict[str, Any]

    def batches(self, iteration: int, share: slice, generator: Generator) -> Iterator[Batch]:
        """Yields the batches from an iteration on. What is random is a function of the iteration
        and of the generator's state, whatever the share."""

    def held_out(self) -> Tensor:
        """Returns the windows that validate, with shape (n, w, *state)."""


class Simulated:
    """Trajectories simulated in memory.

    Arguments:
        config: What to simulate.
    """

    def __init__(self, config: Config):
        self.config = config
        chain = build_system(config.system, **config.parameters)
        data = simulate(
            chain,
            config.trajectories,
            config.states,
            burn_in=CATALOGUE[config.system].burn_in,
            coarsen=config.coarsen,
            generator=Generator().manual_seed(config.seed),
        )
        self.state = tuple(data.shape[2:])

        own = chain.standardisation(self.state)
        if own is not None:  # the data are standardised by it already
            self.mean, self.std = own
        else:
            dims = [d for d in range(data.ndim) if d != 2]
            self.std, self.mean = torch.std_mean(data, dim=dims, correction=0)
            self.std = self.std.where(self.std > 0, 1.0)
            channels = (-1, *(1 for _ in self.state[1:]))
            data = data.sub_(self.mean.reshape(channels)).div_(self.std.reshape(channels))

        self.data, self.validation = data.tensor_split([math.ceil(0.9 * len(data))])
        self.identity = identify(config)

    def batches(self, iteration: int, share: slice, generator: Generator) -> Iterator[Batch]:
        """Yields the batches from an iteration on."""
        batch, mixture = self.config.batch_size, torch.tensor(self.config.mixture)

        while True:
            x = draw_windows(self.data, batch, self.config.window, generator=generator)
            eps = torch.randn(x.shape, generator=generator)
            length = mixture[torch.randint(len(mixture), (batch,), generator=generator)]
            yield x[share], eps, length

    def held_out(self) -> Tensor:
        """Returns the windows that validate."""
        generator = Generator().manual_seed(1)
        n, window = self.config.validation, self.config.window
        return draw_windows(self.validation, n, window, generator=generator)


class Stored:
    """A data set on disk.

    Arguments:
        config: What to read.
        workers: The number of processes that read, or 0.

    Raises:
        ValueError: The file is not a complete data set of the system, or too short.
    """

    def __init__(self, config: Config, workers: int = 0):
        self.config, self.workers = config, workers
        self.data = Trajectories(config.data, system=config.system)
        if self.data.shape[1] < config.window:
            raise ValueError(
                f"the trajectories of {config.data} have {self.data.shape[1]} states, fewer than "
                f"a window's {config.window}"
            )
        self.state = self.data.shape[2:]
        self.mean, self.std = self.data.mean, self.data.std
        self.identity = identify(config)

    def batches(self, iteration: int, share: slice, generator: Generator) -> Iterator[Batch]:
        """Yields the batches from an iteration on. Window i of the run is that of index i."""
        config, batch = self.config, self.config.batch_size
        windows = Windows(
            self.data, config.mixture, size=config.iterations * batch, seed=config.seed
        )
        rows = range(batch)[share]
        indices = ([n * batch + i for i in rows] for n in range(iteration, config.iterations))
        loader = DataLoader(
            windows,
            batch_sampler=indices,  # type: ignore[arg-type]
            num_workers=self.workers,
            generator=Generator(),  # torch's own is left alone
        )

        for n, (x, _) in enumerate(loader, start=iteration):
            eps = torch.randn(batch, config.window, *self.state, generator=generator)
            length = [windows.locate(n * batch + i)[2] for i in range(batch)]
            if windows.window < config.window:  # no length is that of the whole window
                x = torch.cat((x, x.new_zeros(eps[rows.start : rows.stop, x.shape[1] :].shape)), 1)
            yield x, eps, torch.tensor(length)

    def held_out(self) -> Tensor:
        """Returns the windows that validate."""
        n, window = self.config.validation, self.config.window
        windows = Windows(self.data, window, split="valid", size=n, seed=1)
        return torch.stack([windows[i][0] for i in range(n)])


def identify(config: Config) -> dict[str, Any]:
    """Says what the data of a run are, wherever they lie, so far as its options do not."""
    if not config.data:
        return {}
    data = Trajectories(config.data, system=config.system)
    identity: dict[str, Any] = {"trajectories": list(data.shape)}
    if data.recipe is not None:
        return identity | {name: getattr(data.recipe, name) for name in SIMULATION}
    means = {"mean": data.mean.tolist(), "std": data.std.tolist()}
    return identity | means | {"digest": data.digest()}


def differences_of_data(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Says in what the data of one run differ from those of another, by their identities."""
    if bool(mine) != bool(theirs):
        kinds = [("a data set" if data else "simulated in memory") for data in (mine, theirs)]
        return ["data {} (now {})".format(*kinds)]
    return [
        f"{key} of the data {mine.get(key)!r} (now {theirs.get(key)!r})"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    ]


def open_source(config: Config, workers: int = 0) -> Source:
    """Opens the data of a run, or simulates them."""
    return Stored(config, workers) if config.data else Simulated(config)
