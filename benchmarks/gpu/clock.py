"""Timing on a device: events on its stream, and the host's clock on the CPU."""

__all__ = ["Timing", "time"]

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """The seconds of one call: the median of some rounds of calls, and their quartiles.

    Arguments:
        median: The median.
        q1: The first quartile.
        q3: The third quartile.
        rounds: The number of rounds.
        calls: The number of calls in a round.
    """

    median: float
    q1: float
    q3: float
    rounds: int
    calls: int


def _round(run: Callable[..., Any], sets: Any, calls: int, device: str) -> float:
    """Returns the seconds of a call, the mean of a round of them over rotating arguments."""
    if device == "cpu":
        began = perf_counter()
        for _ in range(calls):
            run(*next(sets))
        return (perf_counter() - began) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(calls):
        run(*next(sets))
    last.record()
    last.synchronize()
    return 1e-3 * first.elapsed_time(last) / calls


def time(
    run: Callable[..., Any],
    sets: Sequence[Sequence[Any]] = ((),),
    device: str = "cuda",
    rounds: int = 15,
    seconds: float = 0.3,
) -> Timing:
    """Times a function over sets of arguments in turn, after a warm-up.

    Arguments:
        run: The function.
        sets: Its arguments. Together they are to be larger than the cache.
        device: The device.
        rounds: The number of rounds at most.
        seconds: The time of all rounds, about.
    """
    turn = itertools.cycle(sets)
    for _ in range(min(len(sets), 3)):
        run(*next(turn))
    _round(run, turn, 1, device)
    once = _round(run, turn, 1, device)
    rounds = max(3, min(rounds, int(seconds / once)))
    calls = max(1, min(1000, int(seconds / rounds / once)))
    times = [_round(run, turn, calls, device) for _ in range(rounds)]
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, q1, q3, rounds, calls)
