"""Replaying one captured evaluation of the noise estimate at every time of a plan, on CUDA.

A network is dozens of small kernels, and at few samples the host takes longer to launch them than
the device to run them. Captured once in a graph they are one launch. What changes from time to time
(t, mu and sigma) is read from a row in the device's memory, which a replay fills from a table.
"""

__all__ = ["Graph", "unserved"]

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..guidance import Level, Pieces
from ..recognise import ROUGH
from .plan import SamplingPlan

# A capture costs about as much as four evaluations: two to warm up, one of each kind to compare.
LEAST = 16

T = TypeVar("T")
Estimate = Tensor | Pieces
Pool = Any  # torch's name of memory that graphs share
Evaluate = Callable[[Tensor, Tensor, tuple[Level, ...]], Estimate]


def unserved(plan: SamplingPlan) -> str | None:
    """Returns why the evaluations of a plan are not captured, or None if that is to be tried."""
    if plan.device.type != "cuda":
        return f"the device is {plan.device.type}"
    if plan.evaluations < LEAST:
        return f"it pays from {LEAST} evaluations on"
    return None


_capturing = threading.RLock()  # torch knows one capture at a time


@cache
def _side(device: int) -> torch.cuda.Stream:
    """Returns the stream of a device that all captures are made on: libraries keep a workspace for
    each stream that they have served."""
    return torch.cuda.Stream(device)


class _Read(TorchDispatchMode):
    """Holds the tensors that are read and were not computed within: a graph knows where they lay,
    and reads there whatever has become of them. Packed weights, for one, are let go of when a
    callback evaluates the network, which packs its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self._computed: set[int] = set()  # where their memory lies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = filter(_is_tensor, tree_leaves((args, kwargs)))
        self.tensors += [x for x in read if _memory(x) not in self._computed]
        result = func(*args, **(kwargs or {}))
        self._computed.update(map(_memory, filter(_is_tensor, tree_leaves(result))))
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _memory(x: Tensor) -> int:
    """Returns where the memory of a tensor lies; of a sparse one, which has several, what tells it
    from others."""
    try:
        return x.untyped_storage().data_ptr()
    except RuntimeError:
        return id(x)


def capture(function: Callable[[], T], pool: Pool | None = None) -> tuple[T, Callable[[], None]]:
    """Captures what a function does on the device.

    Arguments:
        function: The function.
        pool: Memory that is shared with other graphs of which none is replayed meanwhile. What
            those captured before it return is not written to; what later ones return may be.

    Returns:
        What the function returned, and a function that does it again, into the same tensors. It
        holds what is read.

    Raises:
        RuntimeError: It cannot be captured. Torch is as it was before.
    """
    graph, current, read = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), _Read()
    pool = pool or torch.cuda.graph_pool_handle()
    with _capturing:
        side = _side(current.device_index)
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                function()  # libraries choose their algorithms and get their memory
                with _without_waiting(), read:
                    function()
                try:
                    # not to be spoilt by what other threads do meanwhile
                    with torch.cuda.graph(graph, pool, side, capture_error_mode="thread_local"):
                        result = function()
                except BaseException:
                    _abandon(graph, pool, current.device_index)
                    raise
        finally:
            current.wait_stream(side)

    def replay(held: Any = read.tensors) -> None:
        graph.replay()

    return result, replay


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Looks for what waits for the device, which no graph can hold: a capture that fails by it is
    more to put right than one that is not begun. Torch only warns of it, since its setting is one
    for all threads.

    Raises:
        RuntimeError: Something has waited. It says where.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for each in caught:
        if "synchronizing CUDA operation" in str(each.message):
            where = f"{Path(each.filename).name}:{each.lineno}"
            raise RuntimeError(f"it waits for the device, at {where}")


def _abandon(graph: torch.cuda.CUDAGraph, pool: Pool, device: int) -> None:
    """Undoes what is left of a capture that failed, as far as torch does not: before 2.12 memory
    was still allocated from the pool, and the generator drew no more numbers."""
    graph.reset()
    with suppress(AttributeError, RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)  # which raises where torch has done it
        torch._C._cuda_releasePool(device, pool)

    generator = torch.cuda.default_generators[device]
    state = generator.get_state()
    try:
        torch.rand((), device=f"cuda:{device}")
    except RuntimeError:
        generator.graphsafe_set_state(generator.clone_state())
    generator.set_state(state)


class Graph:
    """A captured evaluation of an estimate for one state in memory, which is read anew each time.

    Arguments:
        evaluate: Maps states, a time () and levels to an estimate. It must launch the same work at
            every time.
        x: The state, with shape (B, *event).
        clock: The times, with shape (N + 1), of the type of the state.
        levels: For each time the levels that are passed, all of the same number.
        beside: Another graph whose memory it shares, as one that is not replayed meanwhile.

    Raises:
        RuntimeError: The evaluation cannot be captured, or replayed it does not give the same
            numbers, as it has a state of its own or depends on the time by more than numbers.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        x: Tensor,
        clock: Tensor,
        levels: Sequence[tuple[float, ...]],
        beside: "Graph | None" = None,
    ):
        self.clock = clock
        self.table = torch.tensor(levels, dtype=torch.float64, device=x.device)
        self.t, self.row = clock[0].clone(), self.table[0].clone()

        self.pool: Pool | None = None
        if x.is_cuda:
            self.pool = torch.cuda.graph_pool_handle() if beside is None else beside.pool
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            self.result, self.replay = capture(
                lambda: evaluate(x, self.t, tuple(self.row.unbind())), self.pool
            )

        for n in (len(clock) // 2, 0):
            eager = tree_leaves(evaluate(x, clock[n], levels[n]))
            if not all(map(_agree, eager, tree_leaves(self(n)))):
                raise RuntimeError("replayed, it does not give the same numbers")

    def __call__(self, n: int) -> Estimate:
        """Evaluates the estimate at time n, in memory that the next call overwrites."""
        self.t.copy_(self.clock[n])
        self.row.copy_(self.table[n])
        self.replay()
        return self.result


def _agree(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    a, b = a.double(), b.double()
    # noise at a time that it is not of may overflow, in both alike
    largest = float(a.nan_to_num().abs().max())
    return torch.allclose(a, b, rtol=0.0, atol=ROUGH * largest, equal_nan=True)
