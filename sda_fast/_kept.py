"""What is kept of tensors from call to call."""

__all__ = ["keeping", "version"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def keeping() -> Iterator[None]:
    """Makes tensors that are kept: without gradients of their own, and not in inference mode, whose
    tensors no gradient that is asked for later could use."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def version(x: Tensor) -> object:
    """Returns what differs after a tensor changed in place: the number of such changes, or where
    torch counts none, in inference mode, what is equal to nothing."""
    return object() if x.is_inference() else x._version
