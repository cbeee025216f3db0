"""Writes docs/operators.md: of every operator its error, its speed and the bandwidth it reaches.

    OMP_WAIT_POLICY=passive python -m benchmarks.operators

Rounds of the native operator, eager PyTorch and a copy take turns, on the same tensors; a ratio is
the median of the rounds'. On the CPU a call takes the processor's time of its busiest thread, which
leaves out when others have the processor. With OMP_WAIT_POLICY=passive it leaves out, too, when
that thread waits for another. Where there is no such clock (beside Linux) several threads are timed
by the wall's. On a busy machine the least and the largest ratio lie far apart: repeat it.
"""

__all__ = ["Timing", "error", "main", "operators", "report", "time"]

import argparse
import ctypes
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import clock_gettime, perf_counter, process_time
from typing import NamedTuple

import torch

from sda_fast import _native, ops
from sda_fast.io import atomic_write

from .cases import CASES, DTYPES, Case

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
TEXT = Path(__file__).with_name("operators.md")
ELSEWHERE = (
    *("mlp_score", "mlp_score_vjp"),  # measured by test_networks
    *("winograd", "winograd_"),  # and by test_unet
)
THREADS = Path("/proc/self/task")
LEAST_ROUNDS, SECONDS, SMALL_CALLS = 3, 0.8, 200


class Timing(NamedTuple):
    """Seconds a call, round by round."""

    native: list[float]
    eager: list[float]
    copy: list[float]

    @property
    def ratios(self) -> list[float]:
        return [e / n for n, e in zip(self.native, self.eager, strict=True)]

    def rate(self, moved: int) -> float:
        """Gigabytes a second."""
        return moved / median(self.native) / 1e9

    def of_copy(self, moved: int, copied: int) -> float:
        return median(moved / n / (copied / c) for n, c in zip(self.native, self.copy, strict=True))


def operators() -> set[str]:
    """Returns the names in the native library's schemas."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("sda_fast::") for name in names if name.startswith("sda_fast::")}


# Measuring


def error(case: Case, size: str, dtype: torch.dtype, device: str = "cpu") -> float:
    """Returns the largest error against the reference in float64.

    Of float32 and float64 it is relative to the largest number of the result. Of half types it is
    in units in the last place, half of one if rounded correctly; of numbers below 1/256 of the root
    mean square, which are differences of larger ones, in the units there.
    """
    args = case.arguments(size, dtype, device)
    with ops.backend("native"):
        results = case.results(case.native, *args)
    errors = []
    for result, exact in zip(results, case.exact(*args), strict=True):
        difference = (result.double() - exact).abs()
        if dtype.itemsize > 2:
            unit = exact.abs().max()
        else:
            least = exact.square().mean().sqrt() / 256
            _, exponent = torch.frexp(exact.abs().clamp(min=least))
            unit = torch.finfo(dtype).eps / 2 * torch.exp2(exponent.double())
        errors.append((difference / unit).max().item())
    return max(errors)


def stopwatch(device: str) -> Callable[[], float]:
    """Starts one, which says the seconds that have passed."""
    if device == "cpu" and torch.get_num_threads() == 1:
        clock = process_time
    elif device == "cpu" and THREADS.is_dir():
        before = processor_times()
        return lambda: max(t - before.get(name, 0.0) for name, t in processor_times().items())
    else:
        clock = perf_counter
    began = clock()
    return lambda: clock() - began


def processor_times() -> dict[str, float]:
    """Returns the processor's seconds that each thread of this process has had."""
    times = {}
    for thread in THREADS.iterdir():
        with suppress(OSError):  # it has ended
            times[thread.name] = clock_gettime(~int(thread.name) << 3 | 6)  # Linux's clock of it
    return times


def time(
    case: Case, size: str, dtype: torch.dtype, device: str = "cpu", seconds: float = SECONDS
) -> tuple[Timing, int, int]:
    """Times a case and a copy of 8.4 million float32, or as many as a smaller state has; returns
    how many bytes each moves, too."""
    args = case.arguments(size, dtype, device)
    source = torch.zeros(case.arguments(size, torch.float32)[0].numel(), device=device)
    target = torch.zeros_like(source)
    calls = SMALL_CALLS if size == "small" else 1
    timing = Timing([], [], [])

    def run(call: Callable[[], object]) -> float:
        passed = stopwatch(device)
        for _ in range(calls):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        return passed() / calls

    with ops.backend("native"):
        sides = (
            lambda: case.native(*args),
            lambda: case.eager(*args),
            lambda: target.copy_(source),
        )
        for side in sides:
            run(side)
        began = perf_counter()
        while len(timing.native) < LEAST_ROUNDS or perf_counter() - began < seconds:
            for rounds, side in zip(timing, sides, strict=True):
                rounds.append(run(side))
        moved = case.moved(*args)

    return timing, moved, 2 * source.numel() * source.element_size()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Lets the C library keep all memory that is given back to it, for a `with` block, so that new
    results lie where older ones did, in pages that the system has mapped and cleared already. Other
    C libraries than glibc are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] else None
    if mallopt is None:
        yield
        return
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(mmap_max, 65536)
        mallopt(trim_threshold, 2**17)


# Writing


def facts(device: str, threads: Sequence[int]) -> str:
    """Says what it was measured on."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = dict(
            (part.strip() for part in line.split(":", 1))
            for line in cpuinfo.read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
        model = lines.get("model name", model)
        if {"cpu family", "model"} <= lines.keys():
            model += f" (family {lines['cpu family']}, model {lines['model']})"
    counts = " and ".join(map(str, threads))
    return f"{model}, {_native.info()['isa']} loops, torch {torch.__version__}, {counts} thread(s)"


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*cells: object) -> list[str]:
    return [row(*cells), "|---" * len(cells) + "|"]


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def factor(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"


def errors(size: str, device: str) -> Iterator[str]:
    yield from head("", *map(short, DTYPES))
    for case in CASES:
        found = [error(case, size, dtype, device) for dtype in DTYPES]
        wide = [f"{e:.0e}" if e else "0" for e in found[:2]]
        yield row(case.title, *wide, *(f"{e:.2f} ulp" if e else "0" for e in found[2:]))


def speeds(size: str, device: str, threads: Sequence[int], seconds: float) -> Iterator[str]:
    """Yields the rows of ratios."""
    columns = [(dtype, threads[0]) for dtype in DTYPES]
    columns += [(DTYPES[0], count) for count in threads[1:]]
    names = [
        short(dtype) if count == threads[0] else f"{short(dtype)}, {count} threads"
        for dtype, count in columns
    ]
    yield from head("", "eager PyTorch", *names)
    for case in CASES:
        ratio: list[str] = []
        for dtype, count in columns:
            torch.set_num_threads(count)
            timing, _, _ = time(case, size, dtype, device, seconds)
            ratio.append(factor(timing.ratios))
        yield row(case.title, f"`{case.formula}`", *ratio)


def rates(size: str, device: str, threads: Sequence[int], seconds: float) -> Iterator[str]:
    """Yields the rows of bandwidths, and of ratios in the same memory."""
    what = ("ms", "GB/s", "of a copy", "eager / native")
    wide = ["" if count == threads[0] else f", {count} threads" for count in threads]
    yield from head("", *(f"{name}{count}" for count in wide for name in what))
    with kept_memory():
        for case in CASES:
            rate: list[str] = []
            for count in threads:
                torch.set_num_threads(count)
                timing, moved, copied = time(case, size, torch.float32, device, seconds)
                rate.append(f"{1e3 * median(timing.native):.1f}")
                rate.append(f"{timing.rate(moved):.1f}")
                rate.append(f"{timing.of_copy(moved, copied):.0%}")
                rate.append(factor(timing.ratios))
            yield row(case.title, *rate)


def small(device: str, seconds: float) -> Iterator[str]:
    yield from head("", "native, µs", "eager, µs", "ratio")
    for case in CASES:
        timing, _, _ = time(case, "small", torch.float32, device, seconds)
        microseconds = (f"{1e6 * median(side):.1f}" for side in (timing.native, timing.eager))
        yield row(case.title, *microseconds, factor(timing.ratios))


@torch.no_grad()
def report(
    large: str = "large",
    device: str = "cpu",
    threads: Sequence[int] = (1, 2),
    seconds: float = SECONDS,
) -> str:
    """Measures and returns the page."""
    missing = operators() - {case.operator for case in CASES} - set(ELSEWHERE)
    if missing:
        raise ValueError(f"every operator must be among the cases, but {sorted(missing)} are not")

    torch.manual_seed(0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads[0])
        tables = {"errors": "\n".join(errors("medium", device))}
        tables["small"] = "\n".join(small(device, seconds / 4))
        tables["ratios"] = "\n".join(speeds(large, device, threads, seconds))
        tables["rates"] = "\n".join(rates(large, device, threads, seconds))
    finally:
        torch.set_num_threads(before)
    return TEXT.read_text().format(facts=facts(device, threads), **tables)


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors and speeds of the operators.")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="all types at the first count"
    )
    parser.add_argument(
        "--quick", action="store_true", help="medium sizes and few rounds: to see that it runs"
    )
    arguments = parser.parse_args()

    size, seconds = ("medium", 0.0) if arguments.quick else ("large", SECONDS)
    page = report(size, arguments.device, arguments.threads, seconds)
    atomic_write(arguments.out, page.encode())


if __name__ == "__main__":
    main()
