"""What the machine can do at most: the floors under every timing.

    python -m benchmarks.probe [--device cuda]

A piece of work takes no less than its floating-point operations over the peak rate, nor than the
bytes it reads and writes at least over the rate of a copy. Both are measured, in the same run as
what is held against them. The CPU's peaks need compiled code: `probe.cpp`, which is compiled here
for this very machine, so that the package carries nothing that only measures.
"""

__all__ = ["Floors", "measure"]

import argparse
import ctypes
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .turns import matmul_precision

SOURCE = Path(__file__).with_name("probe.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")


# What no core does in a cycle: more than two 512-bit multiply-adds, or products of as many pairs.
MOST = {"float32_one": 2 * 2 * 16, "bfloat16_one": 2 * 4 * 16}


@dataclass(frozen=True)
class Floors:
    """Peak rates, or None where they could not be measured.

    Arguments:
        device: The device.
        threads: The number of threads of "all".
        float32: The rate of fused multiply-adds in float32 of all threads (of a GPU: of a matrix
            product without tf32), in FLOP/s.
        float32_one: That of one thread.
        tf32: That of a GPU's matrix product of float32 with its factors rounded to tf32.
        bfloat16: The rate of products in bfloat16 summed in float32, in FLOP/s.
        bfloat16_one: That of one thread.
        copy: The rate of a copy by all threads, in bytes read and written a second.
        copy_one: That of one thread.
        update: The rate of an addition in place, of bytes read and written. A CPU's copy reads what
            it overwrites as well, which is not counted.
        update_one: That of one thread.
        clock: The CPU's clock while one thread adds, in Hz.
        missing: Why a rate is missing.
    """

    device: str
    threads: int
    float32: float | None = None
    float32_one: float | None = None
    tf32: float | None = None
    bfloat16: float | None = None
    bfloat16_one: float | None = None
    copy: float | None = None
    copy_one: float | None = None
    update: float | None = None
    update_one: float | None = None
    clock: float | None = None
    missing: str | None = None

    def seconds(self, flops: float = 0, bytes: float = 0, bfloat16: bool = False) -> float | None:
        """Returns the least time that operations and traffic take, or None if it is not known."""
        peak = self.bfloat16 if bfloat16 else self.float32
        times = [n / rate for n, rate in ((flops, peak), (bytes, self.copy)) if n and rate]
        return max(times, default=None)


@cache
def _library() -> ctypes.CDLL | str:
    """Compiles the probe, or says why it cannot."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "there is no C++ compiler"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.so"
        done = subprocess.run(
            [*compiler.split(), *FLAGS, str(SOURCE), "-o", str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            return f"{compiler} cannot compile {SOURCE.name}: {done.stderr.strip()[:200]}"
        library = ctypes.CDLL(str(path))
    for name in ("fma_rate", "bfloat16_rate", "clock_rate"):
        getattr(library, name).restype = ctypes.c_double
        getattr(library, name).argtypes = (ctypes.c_double, ctypes.c_int)
    return library


def _best(repeats: int, bytes: int, run: object, threads: int) -> float:
    """Returns the best rate of some runs of a function on the CPU: of one thread by the processor's
    time, as what is held against it."""
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = []
    for _ in range(repeats):
        began = clock()
        run()  # type: ignore[operator]
        seconds.append(clock() - began)
    return bytes / min(seconds)


def _memory_rates(x: Tensor, y: Tensor, threads: int, repeats: int) -> tuple[float, float]:
    """Returns the rates of a copy and of an addition in place."""
    before, size = torch.get_num_threads(), x.numel() * x.element_size()
    torch.set_num_threads(threads)
    try:
        copy = _best(repeats, 2 * size, lambda: y.copy_(x), threads)
        return copy, _best(repeats, 3 * size, lambda: y.add_(x), threads)
    finally:
        torch.set_num_threads(before)


def checked(floors: Floors) -> Floors:
    """Returns rates of a CPU that a core can have.

    Raises:
        ArithmeticError: A core would do more in a cycle than any can: what was counted was not all
            done.
    """
    for name, most in MOST.items():
        rate = getattr(floors, name)
        if rate and floors.clock and not rate / floors.clock <= 1.05 * most:
            raise ArithmeticError(
                f"{name} must be at most {most} operations a cycle, but is "
                f"{rate / floors.clock:.0f} ({rate:.3g} a second at {floors.clock:.3g} Hz)"
            )
    return floors


def measure_cpu(seconds: float = 0.5, megabytes: int = 256) -> Floors:
    """Measures the CPU, in about six times `seconds`, with torch's number of threads."""
    threads = torch.get_num_threads()
    x = torch.rand(megabytes * 2**18)  # beyond any cache
    y = torch.zeros_like(x)
    copy, update = _memory_rates(x, y, threads, 8)
    copy_one, update_one = _memory_rates(x, y, 1, 8)
    memory = {"copy": copy, "copy_one": copy_one, "update": update, "update_one": update_one}

    library = _library()
    if isinstance(library, str):
        return Floors("cpu", threads, **memory, missing=library)
    return checked(
        Floors(
            "cpu",
            threads,
            float32=library.fma_rate(seconds, threads),
            float32_one=library.fma_rate(seconds, 1),
            bfloat16=library.bfloat16_rate(seconds, threads) or None,
            bfloat16_one=library.bfloat16_rate(seconds, 1) or None,
            clock=library.clock_rate(seconds, 1),
            **memory,
        )
    )


def _cuda_rate(work: float, run: object, repeats: int = 20) -> float:
    """Returns the median rate of a function on the current CUDA device."""
    for _ in range(3):
        run()  # type: ignore[operator]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()  # type: ignore[operator]
        mark.record()
    torch.cuda.synchronize()
    pairs = itertools.pairwise(marks)
    return work / (1e-3 * statistics.median(a.elapsed_time(b) for a, b in pairs))


def measure_cuda(size: int = 8192, megabytes: int = 2048) -> Floors:
    """Measures the current CUDA device, in about a second, on random numbers."""
    x, y = torch.randn(2, megabytes * 2**18, device="cuda")
    copy = _cuda_rate(2 * 4 * x.numel(), lambda: y.copy_(x))

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        c = torch.empty_like(a)
        return _cuda_rate(2 * size**3, lambda: torch.mm(a, b, out=c))

    with matmul_precision("highest"):
        float32 = product(torch.float32)
    with matmul_precision("high"):
        tf32 = product(torch.float32)
    bfloat16 = product(torch.bfloat16)
    return Floors(
        torch.cuda.get_device_name(), 1, float32=float32, tf32=tf32, bfloat16=bfloat16, copy=copy
    )


def measure(device: str = "cpu", quick: bool = False) -> Floors:
    """Measures a device, "cpu" or "cuda".

    Arguments:
        device: The device.
        quick: Whether to look only briefly, to try the code.
    """
    if device == "cuda":
        return measure_cuda(*((1024, 64) if quick else ()))
    return measure_cpu(*((0.05, 64) if quick else ()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what this machine can do at most.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="only briefly")
    arguments = parser.parse_args()
    print(json.dumps(asdict(measure(arguments.device, arguments.quick)), indent=1))


if __name__ == "__main__":
    main()
