"""Everything that changes while training, and how it is kept and found again."""

__all__ = ["State", "finished", "read_header"]

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Generator, Tensor

from ..io import atomic_write, read_record
from ..score import MCScoreNet
from .config import Config
from .source import differences_of_data

FORMAT = "sda_fast training checkpoint 2"


@dataclass
class State:
    """What a run has come to: saved, it goes on from there to the same bits.

    Arguments:
        network: The network that learns.
        average: The average of its weights.
        optimizer: The optimiser of its parameters.
        generator: The source of the randomness of batches.
        iteration: The number of steps made.
        seconds: The time they took.
        best: The least validation error so far.
        losses: The losses since the last validation.
    """

    network: MCScoreNet
    average: MCScoreNet
    optimizer: torch.optim.Optimizer
    generator: Generator
    iteration: int = 0
    seconds: float = 0.0
    best: float = float("inf")
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))

    def _moments(self) -> dict[str, Tensor]:
        """Returns the optimiser's tensors by parameter."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }

    def save(self, path: Path, config: Config, identity: dict[str, Any]) -> None:
        """Writes the state, as a whole or not at all.

        Arguments:
            path: The file.
            config: What the run is a function of.
            identity: What its data are, where not told by `config`.

        Raises:
            RuntimeError: The weights are not finite.
            OSError: It could not be written. What was there before is kept.
        """
        parts = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._moments(),
        }
        tensors = {
            f"{part}.{name}": value.detach().cpu().contiguous()
            for part, values in parts.items()
            for name, value in values.items()
        }
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise RuntimeError(
                f"the weights are not finite at iteration {self.iteration}: lower learning_rate"
            )
        tensors["generator"] = self.generator.get_state()
        tensors["losses"] = self.losses

        header = {
            "config": asdict(config),
            "identity": identity,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": self.best if self.best < float("inf") else None,
        }
        atomic_write(path, save(tensors, {"format": FORMAT, "state": json.dumps(header)}))

    def load(self, path: Path, config: Config, identity: dict[str, Any]) -> None:
        """Reads the state of the same run.

        Raises:
            ValueError: It is no checkpoint, or of another run.
        """
        header = read_header(path)
        _check(f"{path} is a checkpoint", header["config"], header["identity"], config, identity)

        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
        tensors = load_file(path)
        generator, losses = tensors.pop("generator"), tensors.pop("losses")
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            parts[part][name] = value

        try:
            self.network.load_state_dict(parts["network"])
            self.average.load_state_dict(parts["average"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is of another architecture: {reason}") from error

        moments: dict[int, dict[str, Tensor]] = {}
        for i, (name, _) in enumerate(self.network.named_parameters()):
            moments[i] = {
                key: parts["optimizer"][f"{name}.{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

        self.generator.set_state(generator)
        self.losses = losses
        self.iteration, self.seconds = header["iteration"], header["seconds"]
        self.best = float("inf") if header["best"] is None else header["best"]


def _check(
    what: str,
    options: dict[str, Any],
    data: dict[str, Any],
    config: Config,
    identity: dict[str, Any],
) -> None:
    """Checks that what a file says of its run, options and data, is said of this one."""
    try:
        differences = Config.of(options).differences(config)
    except ValueError as error:
        raise ValueError(f"{what} of another version: {error}") from error
    differences += differences_of_data(data, identity)
    if differences:
        raise ValueError(f"{what} of another run: {', '.join(differences)}")


def finished(path: Path, config: Config, identity: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of the prior that a run has come to.

    Raises:
        ValueError: It is no prior, or of another run.
    """
    record = read_record(path)
    if not {"training", "data"} <= record.keys():
        raise ValueError(f"{path} is a prior that does not say how it was trained")
    made = ("iteration", "seconds")
    options = {key: value for key, value in record["training"].items() if key not in made}
    _check(f"{path} is the prior", options, record["data"], config, identity)
    return record


def read_header(path: Path) -> dict[str, Any]:
    """Reads what a checkpoint says of itself: its configuration and its iteration.

    Raises:
        ValueError: It is no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a checkpoint of this program: {error}") from error

    if "run" in metadata:  # formerly of the same format
        raise ValueError(f"{path} is not a checkpoint of training, but of the sampler")
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of this program: its format is "
            f"{metadata.get('format')!r}, expected {FORMAT!r}"
        )
    header: dict[str, Any] = json.loads(metadata["state"])
    return header
