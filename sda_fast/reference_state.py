"""Networks that were trained with the reference package."""

__all__ = ["from_reference_state"]

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .composition import Composition, Plan
from .io import build_network
from .nn import ACTIVATIONS
from .schedule import VPSDE
from .score import MCScoreWrapper, ScoreUNet

LAST = "network.tails.{}.weight"


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a state: {error}") from error


def from_reference_state(
    state: Mapping[str, Tensor] | str | os.PathLike[str],
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    length: int | None = None,
    composition: str | Composition | Plan = "centre",
) -> VPSDE:
    """Rebuilds a noise process from what the reference package's experiments save.

    These are the networks of Lorenz-63, composed from windows or of whole trajectories, and of
    Kolmogorov flow, whose forcing they hold; and others of its `MCScoreNet` that are configured by
    the same names.

    References:
        | Score-based Data Assimilation (Rozet & Louppe, 2023)
        | https://arxiv.org/abs/2306.10574

    Arguments:
        state: The network's `state_dict`, or a file that holds it, `state.pth`.
        config: The configuration, or a JSON file that holds it; by default `config.json` beside
            the state. Of its options those of the network are used: window, embedding, width and
            depth or hidden_features, hidden_channels, hidden_blocks, kernel_size, activation and
            padding_mode; those that it lacks are as in the reference package.
        length: The length L of the trajectories, by default 65, of fields 64, and 32 of a network
            of whole trajectories.
        composition: How the scores of windows are composed, see :mod:`sda_fast.composition`.

    Returns:
        A noise process whose event is a trajectory, with shape (L, *state).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The state is not of a network that the configuration describes.
    """
    if isinstance(state, str | os.PathLike):
        path = Path(state)
        config = path.with_name("config.json") if config is None else config
        state = _read(path)
    if config is None:
        raise ValueError("config must be given with a state that is not a file")
    if isinstance(config, str | os.PathLike):
        if not Path(config).is_file():
            raise FileNotFoundError(
                f"no configuration {str(config)!r}: it is looked for beside the state unless "
                "config= says what it is or where"
            )
        config = json.loads(Path(config).read_text())
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a table of options, got {type(config).__name__}")

    prefixes = {key.split(".")[0] for key in state}
    if prefixes not in ({"kernel"}, {"score"}):
        raise ValueError(
            "state must be of a network composed from windows (kernel.*) or of whole trajectories "
            f"(score.*), got {', '.join(sorted(prefixes)) or 'nothing'}"
        )
    (prefix,) = prefixes
    part = {key.split(".", 1)[1]: value for key, value in state.items()}

    if prefix == "score":
        network, shape = _whole(part, config)
    else:
        network, shape = _windows(part, config)
        network.composition = composition

    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"state is not of the network that config describes: {reason}") from error
    network.eval().requires_grad_(False)

    return VPSDE(network, shape=(length or shape[0], *shape[1:]))


def _unet(part: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Returns the number of channels that a U-Net estimates, and its arguments."""
    channels = list(config.get("hidden_channels", (64, 128, 256)))
    blocks = list(config.get("hidden_blocks", (3,) * len(channels)))
    last = LAST.format(len(channels) - 1)
    if last not in part:
        raise ValueError(f"state has no {last!r}: it is not of a U-Net with channels {channels}")

    return len(part[last]), {
        "embedding": config.get("embedding", 64),
        "hidden_channels": channels,
        "hidden_blocks": blocks,
        "kernel_size": config.get("kernel_size", 3),
        "activation": config.get("activation", "SiLU"),
        "spatial": part[last].ndim - 2,
        "padding_mode": config.get("padding_mode", "circular" if "forcing" in part else "zeros"),
    }


def _whole(part: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """Builds a network of whole trajectories, time being its dimension."""
    defaults = {"embedding": 32, "hidden_channels": (64,), "hidden_blocks": (3,)}
    features, arguments = _unet(part, {**defaults, **config})
    arguments["activation"] = ACTIVATIONS[arguments["activation"]]
    return MCScoreWrapper(ScoreUNet(features, **arguments)), (32, features)


def _windows(part: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """Builds a network that is composed from windows."""
    mlp = "network.heads.0.weight" not in part
    window = config.get("window", 2 * config["order"] + 1 if "order" in config else 5 if mlp else 3)

    if mlp:
        weights = [v for k, v in part.items() if k.startswith("network.") and v.ndim == 2]
        if not weights:
            raise ValueError("state has no network: it is of neither an MLP nor a U-Net")
        channels = len(weights[-1])
        width, depth = config.get("width", 128), config.get("depth", 5)
        arguments = {
            "embedding": config.get("embedding", 32),
            "hidden_features": list(config.get("hidden_features", [width] * depth)),
            "activation": config.get("activation", "SiLU"),
        }
        space: tuple[int, ...] = ()
    else:
        channels, arguments = _unet(part, config)
        if "forcing" in part:
            space = tuple(part["forcing"].shape[1:])
            arguments["forcing"] = {"size": space[0]}
        elif "size" in config:
            space = (config["size"],) * arguments["spatial"]
        else:
            raise ValueError("config must have the size of the fields, which state does not tell")

    if channels % window:
        raise ValueError(f"window must divide the network's {channels} channels, got {window}")
    network = build_network({"features": channels // window, "order": window // 2, **arguments})
    return network, (65 if mlp else 64, channels // window, *space)
