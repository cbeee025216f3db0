"""Under torch.autocast a network is evaluated as the caller asks, all else in the state's type."""

__all__ = ["exact", "is_on", "widened"]

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_on(x: Tensor) -> bool:
    """Says whether operators on a tensor's device are to choose their types themselves."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def exact(x: Tensor) -> AbstractContextManager[object]:
    """Leaves autocast for a `with` block."""
    return torch.autocast(x.device.type, enabled=False) if is_on(x) else nullcontext()


def widened(eps: Tensor, x: Tensor) -> Tensor:
    """Returns an estimate in the type of the state x, which autocast may have narrowed."""
    return eps.to(x.dtype) if is_on(x) else eps
