"""Observations of single states, with gaps, as filters and smoothers take them."""

__all__ = ["Observation"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .metrics import log_likelihood


@dataclass(frozen=True, eq=False)
class Observation:
    r"""Observations of each state of a trajectory, :math:`y_i \sim N(A(x_i), \mathrm{std}^2)`.

    Arguments:
        y: The observations, with shape (L, *observation). NaN stands for what was not observed.
        A: The observation operator, from states (*, *state) to (*, *observation).
        std: The standard deviation of the noise, broadcastable with y, in the units of y.

    Raises:
        ValueError: std is not positive, or does not broadcast to the shape of y.
    """

    y: Tensor
    A: Callable[[Tensor], Tensor]
    std: float | Tensor

    def __post_init__(self) -> None:
        std = torch.as_tensor(self.std, dtype=torch.float64, device=self.y.device)
        if not bool((std > 0).all()):
            raise ValueError(f"std must be positive, but its least is {float(std.min())}")
        try:
            std = std.expand(self.y.shape)
        except RuntimeError as error:
            raise ValueError(
                f"std must broadcast to y, with shape {tuple(self.y.shape)}, but has shape "
                f"{tuple(std.shape)}"
            ) from error
        object.__setattr__(self, "std", std)

    def __len__(self) -> int:
        return len(self.y)

    def observed(self, step: int) -> bool:
        """Says whether anything was observed of a state. Of those after the last, nothing was."""
        return step < len(self.y) and not bool(self.y[step].isnan().all())

    def log_likelihood(self, step: int, x: Tensor) -> Tensor:
        r"""Returns :math:`\log p(y_i \mid x_i)` of states (*, *state), with shape (*)."""
        y, std = self.y[step], torch.as_tensor(self.std)[step]
        return log_likelihood(self.A(x), y, std)

    def total_log_likelihood(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\log p(y \mid x)` of trajectories (*, L, *state), with shape (*)."""
        prediction = self.A(x)
        time = prediction.ndim - self.y.ndim
        prediction = prediction.narrow(time, 0, min(len(self), prediction.shape[time]))

        return log_likelihood(prediction, self.y, self.std)
