"""Trains the networks of studies that :mod:`sda_fast.training` has no word for.

It learns windows of one system. A network over whole trajectories, or one that is told a parameter
of its system, is fitted here to any loss, by the paper's optimiser.
"""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sda_fast.io import atomic_write

Network = TypeVar("Network", bound=nn.Module)


def fit(
    network: Network,
    loss: Callable[[Network], Tensor],
    path: Path,
    *,
    iterations: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    ema: float = 0.999,
    every: int = 1000,
) -> Network:
    """Trains a network, unless the file holds it, and returns the average of its weights.

    A run that was interrupted goes on where it was last kept.

    Arguments:
        network: The network, which learns by AdamW, its learning rate falling linearly to zero.
        loss: A function from the network to its loss on a batch, drawn by torch's own generator.
            What a step draws is a function of the step's number.
        path: The safetensors file of the average's weights.
        iterations: The number of steps.
        learning_rate: The learning rate of the first.
        weight_decay: The weight decay.
        ema: The decay of the average.
        every: The number of steps between what is kept of a run.
    """
    average = copy.deepcopy(network).requires_grad_(False).eval()
    if path.exists():
        average.load_state_dict(load_file(path))
        return average

    parameters = list(network.parameters())
    options = {"lr": learning_rate, "weight_decay": weight_decay, "fused": True}
    optimizer = torch.optim.AdamW(parameters, **options)
    parts = {"network": network, "average": average, "optimizer": optimizer}
    part = path.with_suffix(".checkpoint")
    start = 0
    if part.exists():
        kept = torch.load(part, weights_only=True)
        start = kept.pop("iteration")
        for name, state in kept.items():
            parts[name].load_state_dict(state)

    path.parent.mkdir(parents=True, exist_ok=True)
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        for i in range(start, iterations):
            torch.manual_seed(i)
            for settings in optimizer.param_groups:
                settings["lr"] = learning_rate * (1 - i / iterations)
            optimizer.zero_grad()
            error = loss(network)
            error.backward()
            optimizer.step()

            total += float(error.detach())
            with torch.no_grad():
                decay = min(ema, (i + 1) / (i + 11))
                torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)

            if (i + 1) % every == 0:
                print(f"{path.stem} {i + 1}/{iterations}: loss {total / every:.4f}", flush=True)
                total = 0.0
                states = {name: value.state_dict() for name, value in parts.items()}
                buffer = io.BytesIO()
                torch.save(states | {"iteration": i + 1}, buffer)
                atomic_write(part, buffer.getvalue())

    atomic_write(path, save({k: v.contiguous() for k, v in average.state_dict().items()}))
    part.unlink(missing_ok=True)
    return average
