"""Training: a window network learns to denoise windows of simulated trajectories."""

__all__ = ["LEVELS", "Config", "denoising_error", "train"]

import copy
import io
import math
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from .data import draw_windows, simulate
from .io import atomic_write, build_network, save_prior
from .schedule import VPSDE
from .score import MCScoreNet
from .systems import MarkovChain, NoisyLorenz63

#: The diffusion times at which the denoising error is reported.
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)

#: The systems that can be trained on: how to make one, and the shape of its state.
SYSTEMS: dict[str, tuple[type[MarkovChain], dict[str, Any], tuple[int, ...]]] = {
    "lorenz63": (NoisyLorenz63, {"dt": 0.025}, (3,)),
}


@dataclass(frozen=True)
class Config:
    """What a training run is a function of. The defaults are the paper's for Lorenz-63.

    Arguments:
        system: The name of the system.
        order: The half-width k of the windows of 2k + 1 states.
        width: The width of the hidden layers.
        depth: The number of hidden layers.
        embedding: The number of time embedding features.
        activation: The name of the activation function.
        length_aware: Whether the network learns windows of several lengths.
        lengths: The lengths that are drawn from, uniformly, if it does; a length may be repeated.
            By default the full window as often as all shorter ones together.
        iterations: The number of optimisation steps.
        batch_size: The number of windows of a step.
        learning_rate: The initial learning rate, which decays linearly to zero.
        weight_decay: The weight decay of AdamW.
        ema: The decay of the exponential moving average of the weights, which is what is saved.
        trajectories: The number of trajectories simulated, of which a tenth validates.
        states: The number of states of each trajectory.
        seed: The seed of the simulation, the initial weights and the order of the data.
    """

    system: str = "lorenz63"
    order: int = 2
    width: int = 256
    depth: int = 5
    embedding: int = 32
    activation: str = "SiLU"
    length_aware: bool = False
    lengths: tuple[int, ...] = ()
    iterations: int = 50_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    ema: float = 0.999
    trajectories: int = 1024
    states: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.system not in SYSTEMS:
            raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, got {self.system!r}")

        positive = ("order", "width", "depth", "embedding", "iterations", "batch_size")
        for name in (*positive, "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and less than 1, got {self.ema}")
        if self.trajectories < 10:
            raise ValueError(f"trajectories must be at least 10, got {self.trajectories}")
        if self.states < self.window:
            raise ValueError(f"states must be at least {self.window}, got {self.states}")
        if self.lengths and not self.length_aware:
            raise ValueError("lengths are only for a length_aware network")
        if any(not 1 <= n <= self.window for n in self.lengths):
            raise ValueError(f"lengths must be between 1 and {self.window}, got {self.lengths}")

    @property
    def window(self) -> int:
        """The number w of states of a window."""
        return 2 * self.order + 1

    @property
    def mixture(self) -> tuple[int, ...]:
        """The lengths that are drawn from, uniformly."""
        if not self.length_aware:
            return (self.window,)
        shorter = tuple(range(1, self.window))
        return self.lengths or shorter + len(shorter) * (self.window,)

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of :func:`sda_fast.io.build_network`."""
        (features,) = SYSTEMS[self.system][2]
        return {
            "features": features,
            "order": self.order,
            "length_aware": self.length_aware,
            "embedding": self.embedding,
            "hidden_features": [self.width] * self.depth,
            "activation": self.activation,
        }


def make_system(name: str) -> MarkovChain:
    """Makes the system that a prior of this name is about."""
    system, arguments, _ = SYSTEMS[name]
    return system(**arguments)


def _squared_error(
    network: MCScoreNet, x: Tensor, eps: Tensor, t: Tensor, length: Tensor, sde: VPSDE
) -> Tensor:
    """Returns the mean squared error of the noise estimate over valid states, for each window."""
    mask = (torch.arange(x.shape[1]) < length[:, None]).to(x.dtype)
    valid = mask[..., None].expand_as(x).flatten(1)

    x, eps, t = x.flatten(1), eps.flatten(1), t[:, None]
    noisy = sde.mu(t) * x + sde.sigma(t) * eps
    estimate = network.kernel(noisy * valid, t[:, 0], mask if network.length_aware else None)

    return ((estimate - eps).square() * valid).sum(dim=1) / valid.sum(dim=1)


def denoising_error(
    sde: VPSDE,
    windows: Tensor,
    length: int | None = None,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> list[float]:
    r"""Measures :math:`E (\epsilon_\phi - \epsilon)^2` of a prior's network at noise levels.

    Arguments:
        sde: The prior, whose network is a :class:`sda_fast.MCScoreNet`.
        windows: Clean, standardised windows, with shape (n, w, *state).
        length: The number of states of each window that are scored, by default all.
        levels: The diffusion times.
        seed: The seed of the noise.
    """
    generator = Generator().manual_seed(seed)
    count = torch.full((len(windows),), length or windows.shape[1])
    errors = []

    with torch.no_grad():
        for level in levels:
            eps = torch.randn(windows.shape, generator=generator)
            t = torch.full((len(windows),), level)
            errors.append(float(_squared_error(sde.eps, windows, eps, t, count, sde).mean()))  # type: ignore[arg-type]

    return errors


# What torch.load, or looking into what it returns, raises where a file is not a checkpoint.
UNREADABLE = (RuntimeError, LookupError, TypeError, EOFError, pickle.UnpicklingError)


@dataclass
class _State:
    """Everything that changes while training, so that it can be saved and resumed."""

    network: MCScoreNet
    average: MCScoreNet
    optimizer: torch.optim.Optimizer
    generator: Generator
    iteration: int = 0
    seconds: float = 0.0

    def save(self, path: Path, config: Config) -> None:
        content = {
            "config": {**asdict(config), "lengths": list(config.lengths)},
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        atomic_write(path, buffer.getvalue())

    def load(self, path: Path, config: Config) -> None:
        try:
            content = torch.load(path, weights_only=True)
            saved = Config(**{**content["config"], "lengths": tuple(content["config"]["lengths"])})
        except UNREADABLE as error:
            raise ValueError(f"{path} is not a checkpoint of this program: {error}") from error

        if saved != config:
            theirs, ours = asdict(saved), asdict(config)
            differ = [f"{k} {theirs[k]!r} (now {ours[k]!r})" for k in ours if ours[k] != theirs[k]]
            raise ValueError(f"{path} is a checkpoint of another run: {', '.join(differ)}")

        self.network.load_state_dict(content["network"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.generator.set_state(content["generator"])
        self.iteration = content["iteration"]
        self.seconds = content["seconds"]


def _iterate(state: _State, config: Config, sde: VPSDE, data: Tensor) -> Iterator[Tensor]:
    """Optimises the network, yielding the loss of every iteration."""
    mixture = torch.tensor(config.mixture)
    batch, generator = config.batch_size, state.generator

    while state.iteration < config.iterations:
        windows = draw_windows(data, batch, config.window, generator=generator)
        eps = torch.randn(windows.shape, generator=generator)
        length = mixture[torch.randint(len(mixture), (batch,), generator=generator)]
        # uniform, but spread over the batch: less variance than independent times
        t = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch

        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - state.iteration / config.iterations)

        loss = _squared_error(state.network, windows, eps, t, length, sde).mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()

        state.iteration += 1
        decay = min(config.ema, state.iteration / (state.iteration + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(state.average.parameters()), list(state.network.parameters()), 1 - decay
            )

        yield loss.detach()


def train(
    config: Config,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    every: int = 2000,
    progress: bool = True,
) -> dict[str, Any]:
    """Simulates a data set, trains a prior on it and saves the prior.

    While it runs, a checkpoint is kept beside the output, `out` with the suffix ".checkpoint".

    Arguments:
        config: What to train.
        out: The safetensors file to write.
        resume: Whether to go on from the checkpoint.
        every: The number of iterations between two validations, each followed by a checkpoint.
        progress: Whether to show a progress bar.

    Returns:
        The record that is saved with the prior.

    Raises:
        ValueError: The checkpoint is not of this run.
        RuntimeError: The loss is not finite.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    out = Path(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no directory {str(out.parent)!r} to write {out.name} into")
    checkpoint = out.with_name(out.name + ".checkpoint")

    data = simulate(
        make_system(config.system),
        config.trajectories,
        config.states,
        generator=Generator().manual_seed(config.seed),
    )
    data, validation = data.tensor_split([math.ceil(0.9 * len(data))])
    held_out = draw_windows(validation, 4096, config.window, generator=Generator().manual_seed(1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.network)

    average = copy.deepcopy(network).requires_grad_(False)
    shape = (65, *SYSTEMS[config.system][2])
    sde, averaged = VPSDE(network, shape), VPSDE(average, shape)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    state = _State(network, average, optimizer, Generator().manual_seed(config.seed + 1))

    if resume and checkpoint.exists():
        state.load(checkpoint, config)

    began = time.perf_counter() - state.seconds
    bar = tqdm(total=config.iterations, initial=state.iteration, disable=not progress, ncols=100)
    losses = []

    for loss in _iterate(state, config, sde, data):
        losses.append(loss)
        bar.update()

        if state.iteration % every == 0:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            if not math.isfinite(mean):
                raise RuntimeError(
                    f"the loss is not finite at iteration {state.iteration}: lower learning_rate"
                )
            errors = denoising_error(averaged, held_out)
            bar.set_postfix_str(f"loss {mean:.4f}, valid {sum(errors) / len(errors):.4f}")
            state.seconds = time.perf_counter() - began
            state.save(checkpoint, config)

    bar.close()
    state.seconds = time.perf_counter() - began

    lengths = sorted(set(config.mixture))
    table = {n: denoising_error(averaged, held_out, n) for n in lengths}
    if not all(math.isfinite(error) for values in table.values() for error in values):
        raise RuntimeError("the network is not finite at the end: lower learning_rate")

    record = {
        "network": config.network,
        "schedule": {"class": "VPSDE", "alpha": "cos", "eta": sde.eta},
        "shape": list(shape),
        "system": config.system,
        "training": {**asdict(config), "seconds": round(state.seconds)},
        "validation": {
            "levels": list(LEVELS),
            "denoising_error": table,
        },
    }
    save_prior(out, average, record)
    checkpoint.unlink(missing_ok=True)

    return record
