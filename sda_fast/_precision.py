"""The precision of products of float32, as torch was told it."""

__all__ = ["matmul_precision"]

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
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
        return {"bf16": "medium", "tf32": "high"}.get(backend.matmul.fp32_precision, "highest")
