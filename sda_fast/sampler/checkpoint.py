"""Checkpoints of a run: the state after a step, and which run it is of."""

__all__ = ["Checkpoint"]

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .._autocast import is_on
from .._precision import matmul_precision
from ..io import atomic_write, check_writable
from ..schedule import coefficients
from .identity import digest_of, parts_of
from .plan import SamplingPlan

FORMAT = "sda_fast sampler checkpoint 2"


class Checkpoint:
    """The file of an unfinished run.

    A run is known by its seed, its plan with what serves each part of it, the precision of
    products, its initial noise and context, and its noise process: what this and all within it
    are, with their attributes, parameters and buffers (:mod:`sda_fast.sampler.identity`). Of
    functions only the names are known.

    Arguments:
        path: The file.
        sde: The noise process.
        plan: The plan.
        tensors: The initial noise and the context, where they are given.

    Raises:
        ValueError: There can be no such file.
        OSError: It cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sde: Any,
        plan: SamplingPlan,
        **tensors: Tensor | None,
    ):
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"checkpoint must be a file, but {self.path} is a directory")
        if not self.path.parent.is_dir():
            raise ValueError(
                f"checkpoint must be a file in a directory that there is, got {self.path}: "
                f"{self.path.parent} is none"
            )
        check_writable(self.path)  # else found out after so many steps
        self.device = plan.device
        self.run: dict[str, Any] = {
            "shape": [list(plan.batch), list(plan.event)],
            "dtype": str(plan.dtype),
            "times": list(plan.times),
            "levels": [list(plan.mu), list(plan.sigma), *_guided_levels(sde.eps, plan.times)],
            "corrections": list(plan.corrections),
            "tau": list(plan.tau),
            "order": plan.order,
            "denoise": plan.denoise,
            "clip": plan.clip,
            "device": plan.device.type,
            "backend": [plan.backend, *(by for _, by, _ in plan.parts)],
            "precision": _precision(plan.device),
            **parts_of(sde),
            **{name: digest_of(x) for name, x in tensors.items() if x is not None},
        }

    def save(self, step: int, seed: int, x: Tensor, history: Sequence[Tensor]) -> None:
        """Writes the state after a step, and the estimates of the steps before, the newest first,
        as a whole or not at all."""
        tensors = {"x": x} | {f"eps.{age}": eps for age, eps in enumerate(history)}
        # numbers of 64 bits as text: a JSON reader may take them for floats
        metadata = {
            "format": FORMAT,
            "run": json.dumps(self.run),
            "step": str(step),
            "seed": str(seed),
        }
        content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        atomic_write(self.path, save(content, metadata))

    def load(self, seed: int | None) -> tuple[int, int, Tensor, list[Tensor]] | None:
        """Reads what was written, and the seed after the step, or None where there is no file.

        Raises:
            ValueError: The file is no checkpoint, or one of another run.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint {self.path} cannot be read: {error}") from None
        _check_format(self.path, metadata)

        run = json.loads(metadata["run"])
        differs = [name for name in {**self.run, **run} if self.run.get(name) != run.get(name)]
        if seed is not None and seed != int(metadata["seed"]):
            differs.insert(0, "seed")
        # of what is another thing altogether, its parts need not be told
        differs = [
            name for name in differs if not any(name.startswith(f"{other}.") for other in differs)
        ]
        if differs:
            raise ValueError(
                f"checkpoint {self.path} is of another run, which differs in "
                f"{', '.join(differs)}: remove it or name another one"
            )

        x, *history = (
            tensors[name].to(self.device)
            for name in ["x", *(f"eps.{age}" for age in range(len(tensors) - 1))]
        )
        return int(metadata["step"]), int(metadata["seed"]), x, history

    def remove(self) -> None:
        """Removes the file: the run is finished, and its samples are kept where that fails."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(
                f"checkpoint {self.path} could not be removed: {error.strerror}",
                RuntimeWarning,
                stacklevel=3,
            )


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    """Checks that a file is a checkpoint of the sampler. Its first format was that of training's,
    whose files know no run."""
    found = metadata.get("format")
    if found == FORMAT:
        return
    formats = f"its format is {found!r}, expected {FORMAT!r}"
    if str(found).startswith("sda_fast") and "run" in metadata:
        raise ValueError(
            f"checkpoint {path} is of another version of this package ({formats}), which knew a "
            "run by other parts of it: remove it or name another one"
        )
    training = ("sda_fast training checkpoint", "sda_fast checkpoint")
    kind = " but of training" if str(found).startswith(training) else ""
    raise ValueError(
        f"checkpoint {path} is not a checkpoint of the sampler{kind}: {formats}; name another file"
    )


def _guided_levels(eps: Any, times: Sequence[float]) -> list[list[float]]:
    """Returns the levels of the process that an estimator guides, where it can be asked."""
    try:
        levels = coefficients(eps.sde, torch.tensor(times, dtype=torch.float64))
    except Exception:  # it guides none, or one of the user's own
        return []
    return [level.tolist() for level in levels]


def _precision(device: torch.device) -> str:
    """Names the precision of products, and what autocast narrows them to."""
    kind, precision = device.type, matmul_precision(device)
    if is_on(torch.empty(0, device=device)):
        return f"{precision}, autocast to {torch.get_autocast_dtype(kind)}"
    return precision
