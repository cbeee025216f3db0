"""The precision of products of float32, as torch was told it."""

__all__ = ["exact_products", "matmul_precision"]

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch


def matmul_precision(device: torch.device) -> str:
    """Returns "highest", "high" or "medium", as :func:`torch.set_float32_matmul_precision` has
    them.

    Where torch was told by the settings of each backend instead, as
    `torch.backends.cuda.matmul.fp32_precision`, it does not sum them up, and that of the device's
    backend is read: "bf16" is medium, "tf32" high.
    """
    precision = _summed_up(torch.get_float32_matmul_precision)
    if precision is not None:
        return str(precision)
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return {"bf16": "medium", "tf32": "high"}.get(backend.matmul.fp32_precision, "highest")


_setting = RLock()


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Makes torch multiply without rounding factors for a `with` block, and on CUDA convolve so:
    all threads, of which one at a time does this, so that each finds what was set before."""
    with _setting:
        yield from _exactly(device)


def _exactly(device: torch.device) -> Iterator[None]:
    backends: Any = torch.backends
    on_cuda = device.type == "cuda"
    settings = [backends.cuda.matmul, backends.mkldnn.matmul]
    if on_cuda:
        settings += [backends.cudnn.conv, backends.cudnn.rnn]

    before = [setting.fp32_precision for setting in settings]
    precision = _summed_up(torch.get_float32_matmul_precision)
    tf32 = _summed_up(lambda: backends.cudnn.allow_tf32) if on_cuda else None
    torch.set_float32_matmul_precision("highest")
    if tf32 is not None:
        backends.cudnn.allow_tf32 = False
    for setting in settings:  # which else may follow one that is for all backends
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        if tf32 is not None:
            backends.cudnn.allow_tf32 = tf32
        for setting, each in zip(settings, before, strict=True):
            setting.fp32_precision = each


def _summed_up(read: Callable[[], Any]) -> Any | None:
    """Reads a setting of several backends, or None where torch was told of each by itself."""
    try:
        return read()
    except RuntimeError:
        return None
