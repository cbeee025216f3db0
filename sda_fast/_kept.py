"""What is kept of tensors from call to call."""

__all__ = ["anew", "keeping", "version"]

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from . import _native


@contextmanager
def keeping() -> Iterator[None]:
    """Makes tensors that are kept: without gradients of their own, and not in inference mode, whose
    tensors no gradient that is asked for later could use."""
    with torch.inference_mode(False), torch.no_grad():
        yield


_anew: ContextVar[bool] = ContextVar("sda_fast.anew", default=False)


@contextmanager
def anew() -> Iterator[None]:
    """Keeps nothing of tensors whose changes may have gone unseen."""
    token = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(token)


def version(x: Tensor) -> object:
    """Returns what differs after a tensor changed in place.

    Torch's count leaves out changes through `x.data`, as averages of weights are put into a network
    and taken out of it. On a CPU it is therefore a number of the contents. Elsewhere, where that
    would be waited for, it is the count, and what is equal to nothing where torch has none (in
    inference mode) or within :func:`anew`.
    """
    known = _native.fingerprint(x) if x.is_cpu else None
    if known is not None:
        return known
    return object() if x.is_inference() or _anew.get() else x._version
