"""Priors on disk: one safetensors file with the weights, and how to rebuild the network, in it."""

__all__ = [
    "PRIORS",
    "Standardisation",
    "atomic_write",
    "build_network",
    "check_writable",
    "load_prior",
    "read_record",
    "save_prior",
]

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .composition import Composition, Plan
from .kernels import ForcedScoreUNet, VelocityKernel, kolmogorov_forcing
from .nn import ACTIVATIONS
from .schedule import VPSDE, SubSubVPSDE, SubVPSDE
from .score import MCScoreNet
from .systems import CATALOGUE

FORMAT = "sda_fast prior 1"
PROCESSES = {process.__name__: process for process in (VPSDE, SubVPSDE, SubSubVPSDE)}

#: The priors that come with the package.
PRIORS = {
    "lorenz63": "the paper's network, windows of 5 states (k = 2)",
    "lorenz63-w9": "a length-aware network, windows of up to 9 states, for both compositions",
    "lorenz63-w13": "windows of 7 to 13 states that agree, for the best posteriors",
    "kolmogorov-32": "Kolmogorov flow on 32 × 32 points, a length-aware U-Net, windows of up to 5",
}


def atomic_write(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file as a whole or not at all.

    Raises:
        OSError: It could not be written. What was there before is kept.
    """
    path = Path(path)
    part = _part(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before what it names
        os.replace(part, path)
    except OSError as error:
        kept = ": what was there before is kept" if path.exists() else ""
        raise OSError(
            f"{path} could not be written ({os.strerror(error.errno or 0)}, "
            f"{len(content) / 1e6:.1f} MB){kept}"
        ) from error
    finally:
        with suppress(OSError):  # there may be none, nor a directory for it
            part.unlink()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks that a file can be written, but for its content.

    Raises:
        OSError: It could not be.
    """
    part = _part(Path(path))
    try:
        part.touch()
        part.unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written ({os.strerror(error.errno or 0)})") from error


def _part(path: Path) -> Path:
    """Returns where a file is until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def build_network(config: dict[str, Any]) -> MCScoreNet:
    """Builds a network from the keyword arguments of :class:`sda_fast.MCScoreNet`, with the
    activation by name.

    With "forcing", the arguments of :func:`sda_fast.kernels.kolmogorov_forcing`, its kernel is a
    :class:`sda_fast.ForcedScoreUNet`; with "velocity", the schedule that
    :class:`sda_fast.kernels.VelocityKernel` takes, it is one of those.

    Raises:
        ValueError: There is no such activation.
    """
    config = dict(config)
    forcing, velocity = config.pop("forcing", None), config.pop("velocity", None)
    name = config.get("activation", "ReLU")

    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    config["activation"] = ACTIVATIONS[name]

    network = MCScoreNet(**config)
    if forcing is not None:
        context = network.context + (network.window if network.length_aware else 0)
        others = ("features", "context", "order", "length_aware", "lengths", "composition")
        network.kernel = ForcedScoreUNet(
            network.features * network.window,
            context,
            forcing=kolmogorov_forcing(**forcing),
            **{key: value for key, value in config.items() if key not in others},
        )
    if velocity is not None:
        network.kernel = VelocityKernel(network.kernel, **velocity)  # type: ignore[assignment]

    return network


@dataclass(frozen=True)
class Standardisation:
    """How physical states are mapped to those that a network sees, (x - mean) / std by channel.

    Arguments:
        mean: The mean of each channel, with shape (C).
        std: The standard deviation of each channel, with shape (C).
        dims: The number of dimensions of a state (C, *).
    """

    mean: Tensor
    std: Tensor
    dims: int = 1

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> "Standardisation":
        """Reads the standardisation of a prior, a file or one of :data:`PRIORS`.

        Raises:
            FileNotFoundError: There is no such prior.
            ValueError: The file is not a prior, or does not say.
        """
        record = read_record(name)
        state = record["shape"][1:]
        if "mean" in record:
            return cls(torch.tensor(record["mean"]), torch.tensor(record["std"]), len(state))
        if record.get("system") not in CATALOGUE:
            raise ValueError(f"{name} does not say how its states are standardised")

        own = CATALOGUE[record["system"]].system.standardisation(state)
        mean, std = own or (torch.zeros(state[0]), torch.ones(state[0]))
        return cls(mean, std, len(state))

    def _channels(self, value: Tensor, x: Tensor) -> Tensor:
        dtype = torch.result_type(x, 1.0)  # of integers, a floating type
        return value.to(x.device, dtype).reshape(-1, *(1,) * (self.dims - 1))

    def preprocess(self, x: Tensor) -> Tensor:
        """Standardises physical states (*, *state)."""
        return (x - self._channels(self.mean, x)) / self._channels(self.std, x)

    def postprocess(self, x: Tensor) -> Tensor:
        """Maps standardised states (*, *state) to physical ones."""
        return self._channels(self.mean, x) + self._channels(self.std, x) * x


def save_prior(
    path: str | os.PathLike[str],
    network: nn.Module,
    record: dict[str, Any],
    *,
    half: bool = False,
) -> None:
    """Saves a prior.

    Arguments:
        path: The file to write.
        network: The network, whose weights are saved in float32.
        record: What :func:`load_prior` needs, and whatever else should be remembered: "network",
            the arguments of :func:`build_network`; "schedule", the class and the arguments of the
            noise process; "shape", the event shape of a trajectory of default length; and
            optionally "composition", the rule by default, and "mean" and "std", of each channel.
        half: Whether parameters are saved in float16, half the size.

    Raises:
        ValueError: A parameter is too large for float16.
        OSError: The file could not be written. What was there before is kept.
    """
    parameters = {name for name, _ in network.named_parameters()} if half else set()
    weights = {
        name: value.detach()
        .to("cpu", torch.float16 if name in parameters else torch.float32)
        .contiguous()
        for name, value in network.state_dict().items()
    }
    for name in parameters:
        if not bool(torch.isfinite(weights[name]).all()):
            raise ValueError(f"{name} must be less than 65504 for half precision")
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
        hint = "; from_reference_state reads others" if path.suffix in (".pt", ".pth") else ""
        raise ValueError(f"{path} is not a safetensors file: {error}{hint}") from error

    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a prior of this package: its format is {metadata.get('format')!r}, "
            f"expected {FORMAT!r}"
        )

    record: dict[str, Any] = json.loads(metadata.get("record", "{}"))
    missing = [name for name in ("network", "schedule", "shape") if name not in record]
    if missing:
        raise ValueError(f"{path} is not a whole prior: its record has no {', '.join(missing)}")
    if record["schedule"].get("class") not in PROCESSES:
        raise ValueError(
            f"{path} is of a noise process {record['schedule'].get('class')!r}, expected one of "
            f"{', '.join(PROCESSES)}"
        )
    return record


def load_prior(
    name: str | os.PathLike[str],
    *,
    length: int | None = None,
    composition: str | Composition | Plan | None = None,
    device: str | torch.device = "cpu",
) -> VPSDE:
    """Loads a prior, ready to be sampled or guided.

    Arguments:
        name: A file, or one of :data:`PRIORS`.
        length: The length L of the trajectories. By default the one that the prior was saved with.
        composition: How the scores of windows are composed, see :mod:`sda_fast.composition`. By
            default as the prior was saved, or by the centre rule.
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
    network.composition = (
        record.get("composition", "centre") if composition is None else composition
    )
    network.eval().requires_grad_(False)

    default, *state = record["shape"]
    length = default if length is None else length
    network.plan(length)  # fails here rather than in the first step

    sde = PROCESSES[record["schedule"]["class"]](
        network,
        shape=(length, *state),
        alpha=record["schedule"]["alpha"],
        eta=record["schedule"]["eta"],
    )

    return sde.to(device)
