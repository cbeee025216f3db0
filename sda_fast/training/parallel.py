"""Several processes that learn together, each a share of every batch, as `torchrun` starts them."""

__all__ = ["Group", "group"]

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Group:
    """The processes, of which this is one.

    Arguments:
        rank: The number of this process.
        size: The number of processes.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    def share(self, batch: int) -> slice:
        """The part of a batch that is this process's.

        Raises:
            ValueError: The batch cannot be shared equally.
        """
        if batch % self.size:
            raise ValueError(
                f"batch_size must be a multiple of the {self.size} processes, got {batch}"
            )
        count = batch // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Makes the gradients of a module the means over all processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    def mean(self, x: Tensor) -> Tensor:
        """Returns the mean of a tensor over all processes."""
        if self.size > 1:
            distributed.all_reduce(x)
            x /= self.size
        return x


@contextmanager
def group(device: str | torch.device | None = None) -> Iterator[Group]:
    """Joins the processes that `torchrun` has started, or is alone.

    Arguments:
        device: Where to compute, by default on a GPU if there is one.

    Raises:
        ValueError: There is no such device.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device is None:
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"device must be one that torch computes on, got {str(device)!r}: {reason}"
        ) from error

    if size == 1:
        yield Group(0, 1, device)
        return

    if device.type == "cuda":
        torch.cuda.set_device(device)
    mine = not distributed.is_initialized()
    if mine:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, device)
    finally:
        if mine:
            distributed.destroy_process_group()
