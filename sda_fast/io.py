"""Priors on disk: one safetensors file with the weights, and how to rebuild the network, in it."""

__all__ = ["PRIORS", "build_network", "load_prior", "read_record", "save_prior"]

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from . import schedule
from .composition import Composition, Plan
from .nn import ACTIVATIONS
from .schedule import VPSDE
from .score import MCScoreNet

FORMAT = "sda_fast prior 1"

#: The priors that come with the package.
PRIORS = {
    "lorenz63": "the paper's network, windows of 5 states (k = 2)",
    "lorenz63-w9": "a length-aware network, windows of up to 9 states, for both compositions",
}


def atomic_write(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file as a whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def build_network(config: dict[str, Any]) -> MCScoreNet:
    """Builds a network from the keyword arguments of :class:`sda_fast.MCScoreNet`, with the
    activation by name."""
    config = dict(config)
    name = config.get("activation", "ReLU")

    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")

    return MCScoreNet(**config | {"activation": ACTIVATIONS[name]})


def save_prior(path: str | os.PathLike[str], network: nn.Module, record: dict[str, Any]) -> None:
    """Saves a prior.

    Arguments:
        path: The file to write.
        network: The network, whose weights are saved in float32.
        record: What :func:`load_prior` needs, and whatever else should be remembered: "network",
            the arguments of :func:`build_network`; "schedule", the class and the arguments of the
            noise process; "shape", the event shape of a trajectory of default length.
    """
    weights = {
        name: value.detach().to("cpu", torch.float32).contiguous()
        for name, value in network.state_dict().items()
    }
    metadata = {"format": FORMAT, "record": json.dumps(record)}
    atomic_write(path, save(weights, metadata))


def locate(name: str | os.PathLike[str]) -> Path:
    """Finds the file of a prior by path, or by the name of one that comes with the package."""
    path = Path(name)

    if str(name) in PRIORS:
        path = Path(str(files(__package__) / "weights" / f"{name}.safetensors"))
    if not path.is_file():
        raise FileNotFoundError(
            f"no prior {str(name)!r}: neither a file nor one of {', '.join(PRIORS)}"
        )

    return path


def read_record(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads how a prior was made: its network, its schedule, its system and its training."""
    path = locate(name)

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error

    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a prior of this package: its format is {metadata.get('format')!r}, "
            f"expected {FORMAT!r}"
        )

    record: dict[str, Any] = json.loads(metadata["record"])
    return record


def load_prior(
    name: str | os.PathLike[str],
    *,
    length: int | None = None,
    composition: str | Composition | Plan = "centre",
    device: str | torch.device = "cpu",
) -> VPSDE:
    """Loads a prior, ready to be sampled or guided.

    Arguments:
        name: A file, or one of :data:`PRIORS`.
        length: The length L of the trajectories. By default the one that the prior was saved with.
        composition: How the scores of windows are composed, see :mod:`sda_fast.composition`.
        device: Where to put it.

    Returns:
        A noise process whose event is a trajectory, with shape (L, *state).

    Raises:
        FileNotFoundError: There is no such prior.
        ValueError: The file is not a prior, or the network cannot be composed as asked.
    """
    record = read_record(name)
    with torch.random.fork_rng(devices=[]):  # initial weights are no reason to change what follows
        network = build_network(record["network"])
    network.load_state_dict(load_file(locate(name)))
    network.composition = composition
    network.eval().requires_grad_(False)

    default, *state = record["shape"]
    length = default if length is None else length
    network.plan(length)  # fails here rather than in the first step

    process = getattr(schedule, record["schedule"]["class"])
    sde: VPSDE = process(
        network,
        shape=(length, *state),
        alpha=record["schedule"]["alpha"],
        eta=record["schedule"]["eta"],
    )

    return sde.to(device)
