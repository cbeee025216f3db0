"""How much memory networks take, and of how many windows at once where they are not fused."""

__all__ = ["evaluation_bytes", "free_memory", "windows_that_fit"]

import copy
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._calls import hooked
from ..fused_unet import FusedUNet
from ..guidance import in_pieces
from ..score import MCScoreNet, fused_unet, sampling

SHARE = 0.5  # of the free memory
MANY = 256  # windows, beside which what is there once does not count


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


class _Peak(TorchDispatchMode):
    """Counts the bytes of what is computed and not yet given back, and the most there were.

    Arguments:
        given: What is there before.
    """

    def __init__(self, given: Iterable[Tensor]):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata for tensor in given}
        self.held = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.held += size
            self.most = max(self.most, self.held)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.held -= size


# Of each network that has been tried, by what its results depend on.
_tried: "weakref.WeakKeyDictionary[nn.Module, dict[Any, int | None]]" = weakref.WeakKeyDictionary()


def windows_that_fit(network: MCScoreNet, x: Tensor, gradient: bool) -> int | None:
    """Returns how many windows fit into half of the free memory, or None if it cannot be known.

    Arguments:
        network: A composed network.
        x: Trajectories, with shape (B, L, C, *), of any B.
        gradient: Whether its vector-Jacobian product is taken, which needs all activations.
    """
    free = free_memory(x.device)
    each = None if free is None else _window_bytes(network, x, gradient)
    if free is None or each is None:
        return None
    return max(int(SHARE * free) // max(each, 1), 1)


def evaluation_bytes(
    estimator: Any, x: Tensor, samples: int, window_batch: int | None
) -> int | None:
    """Returns about how much memory an evaluation of a noise estimator takes beside states: the
    packed weights of its network, what is kept for its gradient, and windows. None if it cannot be
    known.

    Arguments:
        estimator: The estimator.
        x: States, with shape (B, *event), of any B.
        samples: The number of samples that are evaluated at once.
        window_batch: The number of windows that are, or None for all.
    """
    guided = in_pieces(estimator)
    if not guided and hasattr(estimator, "sde"):
        return None  # another's guidance keeps what it likes
    network = estimator.sde.eps if guided else estimator
    gradient = guided and not estimator.detach

    unet = fused_unet(network, x)
    packed = unet.packed_bytes(gradient) if isinstance(unet, FusedUNet) else 0

    if not isinstance(network, MCScoreNet):
        known = isinstance(network, nn.Module)
        each = _bytes(network, x.shape[1:], (), x.dtype, gradient) if known else None
        return None if each is None else packed + samples * each

    windows = samples * len(network.plan(x.shape[1]))
    with torch.no_grad(), sampling():
        fused = network.fused(x)
    if not isinstance(fused, str):
        return fused.bytes(windows, gradient)

    each = _window_bytes(network, x, gradient)
    if each is None:
        return None
    # beside the windows of a call all of them exist as the estimate is composed, and for the
    # gradient as cotangents and as what these are pulled back to
    whole = windows * network.window * x.new_empty(x.shape[2:]).nbytes * (3 if gradient else 1)
    return packed + whole + each * (windows if window_batch is None else min(windows, window_batch))


def _window_bytes(network: MCScoreNet, x: Tensor, gradient: bool) -> int | None:
    """Returns about how much memory the kernel of a network takes for a window."""
    space = x.shape[3:]
    channels = network.context + (network.window if network.length_aware else 0)
    context = (channels, *space) if channels else ()
    window = (network.features * network.window, *space)
    return _bytes(network.kernel, window, context, x.dtype, gradient)


def _bytes(
    network: nn.Module,
    shape: Sequence[int],
    context: Sequence[int],
    dtype: torch.dtype,
    gradient: bool,
) -> int | None:
    """Returns how much memory a network takes for one window or trajectory of a shape, with a
    context of one if it has any, or None if that cannot be known."""
    if any(hooked(module) for module in network.modules()):
        return None  # what is called beside it is not for a trial
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = tuple((name, value.shape) for name, value in tensors.items())
    key = (tuple(shape), tuple(context), dtype, gradient, shapes)
    tried = _tried.setdefault(network, {})
    if key not in tried:
        meta: dict[str, Any] = {"dtype": dtype, "device": "meta"}
        c = torch.empty(context, **meta) if context else None
        x = torch.empty(MANY, *shape, **meta).requires_grad_(gradient)
        most = _try(network, list(tensors.values()), x, torch.empty((), **meta), c)
        tried[key] = None if most is None else -(-most // MANY)
    return tried[key]


def _try(
    network: nn.Module, tensors: list[Tensor], x: Tensor, *others: Tensor | None
) -> int | None:
    """Runs a network of these parameters and buffers, and where x requires it the way back, without
    memory on torch's device `meta`. Returns the bytes that it would take, or None if it does not
    run so."""
    try:
        # a copy: what a network keeps of a call would be without memory, too
        without = {id(value): value.detach().to("meta") for value in tensors}
        copied = copy.deepcopy(network, without)
        peak = _Peak([x, *copied.parameters(), *copied.buffers()])
        with torch.inference_mode(False), torch.set_grad_enabled(x.requires_grad), peak:
            eps = copied(x, *others)
            if x.requires_grad:
                torch.autograd.grad(eps, x, torch.empty_like(eps))
    except Exception:  # a network of the user's own
        return None
    return peak.most
