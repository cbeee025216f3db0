"""Codes that take turns: rounds of each in one process, on the same arguments.

A machine that slows down meanwhile slows down for all of them. pytest-benchmark knows one function
a test; so the first test of a group times all codes of it, and each test reports its own rounds.
"""

__all__ = ["Measured", "Replay", "Work", "is_half", "matmul_precision", "precision", "take_turns"]

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch

ROUND = 5e-3  # seconds: so many calls make a round
PRECISION = {"bfloat16": "medium", "tf32": "high"}  # of matrix products, by how a code's name ends
ROUNDING = {"bfloat16": 5e-2, "tf32": 5e-3}  # the error that it may make
# Of a call that takes so many seconds, so many rounds suffice.
LONG, FEW = 2.0, 3
LONGEST, FEWEST = 20.0, 2


@dataclass(frozen=True)
class Work:
    """What several codes do.

    Arguments:
        runs: Functions by the name of the code. A code whose name ends with "bfloat16" or "tf32"
            may round the factors of matrix products to it.
        error: Returns the relative error of a code against the eager one.
        flops: The floating-point operations of matrix products and convolutions, of each.
        bytes: The bytes that each reads and writes at least.
        in_place: Whether what it writes lies where it has read.
        limit: What the error may be, but for codes in bfloat16 and tf32.
        within: Makes a context that all of it is run within.
    """

    runs: dict[str, Callable[[], Any]]
    error: Callable[[str], float] | None = None
    flops: int = 0
    bytes: int = 0
    in_place: bool = False
    limit: float = 1e-4
    within: Callable[[], AbstractContextManager[None]] = nullcontext

    def check(self, code: str) -> None:
        """Compares a code with the eager one.

        Raises:
            ArithmeticError: They differ.
        """
        if self.error is None:
            return
        error, limit = self.error(code), max(ROUNDING.get(suffix(code), 0.0), self.limit)
        if not error <= limit:  # NaN is not
            raise ArithmeticError(
                f"the error of {code} must be at most {limit}, but is {error:.2g}"
            )


@dataclass(frozen=True)
class Measured:
    """Seconds of a call, round by round, or why there are none, by the name of the code."""

    times: dict[str, list[float]] = field(default_factory=dict)
    problems: dict[str, Exception] = field(default_factory=dict)


def suffix(code: str) -> str:
    return code.rpartition(" ")[2]


def is_half(code: str) -> bool:
    return suffix(code) == "bfloat16"


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Sets the precision of float32 matrix products for a `with` block, and on CUDA that of
    convolutions, which by default are of TF32 there."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_precision(precision, precision != "highest")
    try:
        yield
    finally:
        _set_precision(*before)


def _set_precision(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def precision(code: str) -> AbstractContextManager[None]:
    """Sets the precision that a code is to have."""
    return matmul_precision(PRECISION.get(suffix(code), "highest"))


def take_turns(
    work: Work,
    codes: Sequence[str],
    clock: Callable[[], float],
    seconds: float = 0.3,
    rounds: int = 3,
    wait: Callable[[], object] = lambda: None,
) -> Measured:
    """Checks codes, and times rounds of them in turn.

    Arguments:
        work: The work.
        codes: Which codes of it.
        clock: The clock.
        seconds: The time of a code's rounds, but for the least number of them.
        rounds: The least number of rounds; where a call takes seconds, three or two suffice.
        wait: Waits for the device.
    """
    measured = Measured()
    calls: dict[str, int] = {}
    longest = 0.0

    def one_round(code: str) -> float:
        run = work.runs[code]
        with precision(code):
            wait()
            began = clock()
            for _ in range(calls[code]):
                run()
            wait()
            return (clock() - began) / calls[code]

    with work.within():
        for code in codes:
            try:
                with precision(code):
                    work.check(code)
                calls[code] = 1
                if longest < LONG or work.error is None:  # else the comparison was the warm-up
                    once = one_round(code)
                    once = once if once >= LONG else one_round(code)
                    calls[code] = max(1, min(1000, int(ROUND / max(once, 1e-9))))
                    longest = max(longest, once)
                measured.times[code] = []
            except Exception as error:  # whatever a compiler raises: the others are still timed
                measured.problems[code] = error

        if longest >= LONG:
            rounds = min(rounds, FEW if longest < LONGEST else FEWEST)
        done, until = 0, monotonic() + seconds * len(measured.times)
        while done < rounds or monotonic() < until:
            for code, found in measured.times.items():
                found.append(one_round(code))
            done += 1

    return measured


class Replay:
    """A clock that tells the times of rounds which have been measured."""

    def __init__(self) -> None:
        self._ticks: Iterator[float] = iter(())

    def load(self, times: Sequence[float]) -> None:
        self._ticks = iter([tick for seconds in times for tick in (0.0, seconds)])

    def __call__(self) -> float:
        return next(self._ticks)
