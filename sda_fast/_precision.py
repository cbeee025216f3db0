"""The precision of products of float32, as torch was told it."""

__all__ = ["exact_products", "matmul_precision"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def matmul_precision(device: torch.device) -> str:
    """Returns "highest", "high" or "medium", as :func:`torch.set_float32_matmul_precision` has
    them.

    Where torch was told by the settings of each backend instead, as
    `torch.backends.cuda.matmul.fp32_precision`, it does not sum them up, and that of the device's
    backend is read: "bf16" is medium, "tf32" high.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
        return {"bf16": "medium", "tf32": "high"}.get(backend.matmul.fp32_precision, "highest")


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Makes torch multiply without rounding factors for a `with` block, and on CUDA convolve so."""
    backends: Any = torch.backends
    settings = [backends.cuda.matmul, backends.mkldnn.matmul]
    if device.type == "cuda":
        settings += [backends.cudnn.conv, backends.cudnn.rnn]
    before = [setting.fp32_precision for setting in settings]
    try:
        summed_up = torch.get_float32_matmul_precision()
    except RuntimeError:
        summed_up = None

    torch.set_float32_matmul_precision("highest")
    for setting in settings[2:]:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        if summed_up is not None:
            torch.set_float32_matmul_precision(summed_up)
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision
