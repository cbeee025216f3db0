"""How many windows a network that is not fused can evaluate at once."""

__all__ = ["free_memory", "windows_that_fit"]

import copy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._calls import hooked

SHARE = 0.5  # of the free memory


def free_memory(device: torch.device) -> int | None:
    """Returns the number of bytes that are free on a device, or None if it cannot be known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        return None


class _Results(TorchDispatchMode):
    """Counts the bytes of what is computed, and the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if all(r.alias_info is None for r in func._schema.returns):  # views take no memory
            sizes = [t.numel() * t.element_size() for t in tree_leaves(result) if _is_tensor(t)]
            self.total += sum(sizes)
            self.largest = max([self.largest, *sizes])
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


# Of each kernel that has been tried, by what its results depend on.
_tried: "WeakKeyDictionary[nn.Module, dict[Any, _Results | None]]" = WeakKeyDictionary()


def windows_that_fit(network: Any, x: Tensor, gradient: bool) -> int | None:
    """Returns how many windows fit into half of the free memory, or None if it cannot be known.

    Arguments:
        network: A :class:`sda_fast.MCScoreNet`.
        x: Trajectories, with shape (B, L, C, *), of any B.
        gradient: Whether its vector-Jacobian product is taken, which needs all activations.
    """
    free = free_memory(x.device)
    if free is None:
        return None

    kernel = network.kernel
    if any(hooked(module) for module in kernel.modules()):
        return None  # what is called beside it is not for a trial
    tensors = {**dict(kernel.named_parameters()), **dict(kernel.named_buffers())}
    shapes = tuple((name, value.shape) for name, value in tensors.items())
    key = (network.context, network.length_aware, x.dtype, x.shape[3:], shapes)
    tried = _tried.setdefault(kernel, {})
    if key not in tried:
        tried[key] = _try(network, x, tensors)
    results = tried[key]
    if results is None:
        return None

    each = results.total if gradient else 4 * results.largest
    return max(int(SHARE * free) // max(each, 1), 1)


def _try(network: Any, x: Tensor, tensors: dict[str, Tensor]) -> _Results | None:
    """Runs the network on one window without memory, on torch's device `meta`, or returns None if
    it does not run so."""
    space = x.shape[3:]
    channels = network.context + (network.window if network.length_aware else 0)
    meta: dict[str, Any] = {"dtype": x.dtype, "device": "meta"}
    window = torch.empty(1, network.features * network.window, *space, **meta)
    context = torch.empty(channels, *space, **meta) if channels else None

    results = _Results()
    try:
        # a copy: what a kernel keeps of a call would be without memory, too
        without = {id(value): value.detach().to("meta") for value in tensors.values()}
        kernel = copy.deepcopy(network.kernel, without)
        with torch.no_grad(), results:
            kernel(window, torch.empty((), **meta), context)
    except Exception:  # a network of the user's own
        return None
    return results
