"""Times operators, networks and guided steps on a GPU, and writes JSON.

    python -m benchmarks.gpu.timing --out timings.json [--seconds 90] [--device cpu]

Random inputs, drawn anew for every case, in several buffers that together are beyond the cache.
A result that does not agree with the reference is not timed but reported. What the time does not
suffice for is left out and named, the exit status is then 124, and a second run with the same file
goes on with it.
"""

import argparse
import json
import math
import sys
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sda_fast import ops
from sda_fast.io import atomic_write

from ..samples import kolmogorov, lorenz63, sampling_work
from ..turns import Work, is_half, precision
from ..workloads import PAPER, SMALL, Score, mlp_score, relative_error, unet_score
from .cases import DTYPES, FLOW, SIZES, TINY, Case, operator_cases
from .clock import Timing, time

CACHE = 64 * 2**20  # where torch does not tell
LEFT_OUT = 124  # as `timeout` exits


@dataclass
class Run:
    """A benchmark run: what it measures, on which device and for how long."""

    device: str
    until: float
    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # what no case is missing of

    def __post_init__(self) -> None:
        if self.out.exists():
            content = json.loads(self.out.read_text())
            self.rows, self.ended = content["cases"], content["ended"]
        self.before = {(row["group"], row["code"]) for row in self.rows}

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    @property
    def compiler(self) -> str:
        return "eager" if self.tiny else "inductor"

    def over(self, name: str) -> bool:
        """Says whether time is up, and if so that something is left out."""
        if clock.monotonic() > self.until:
            self.left_out.append(name)
            return True
        return False

    def passes(self, group: str, code: str) -> bool:
        """Says whether a case is not to be run: an earlier run did, or time is up."""
        return (group, code) in self.before or self.over(f"{group}, {code}")

    def time(self, run: Callable[..., Any], sets: Any = ((),), seconds: float = 0.2) -> Timing:
        if self.tiny:
            return time(run, sets, self.device, rounds=3, seconds=0.0)
        return time(run, sets, self.device, seconds=seconds)

    def add(self, group: str, code: str, timing: Timing | None, **more: Any) -> None:
        row = {"group": group, "code": code, **(asdict(timing) if timing else {}), **more}
        self.rows.append(row)
        self.write()
        shown = f"{1e6 * timing.median:10.1f} us" if timing else more.get("problem", "")
        print(f"{group:44s} {code:18s} {shown}", flush=True)

    def write(self) -> None:
        content = {
            "device": self.device,
            "cases": self.rows,
            "left_out": self.left_out,
            "ended": self.ended,
        }
        atomic_write(self.out, json.dumps(content, indent=1).encode())

    def buffers(self, case: Case) -> list[tuple[Tensor, ...]]:
        """Draws as many sets of arguments as do not fit into the cache, within an eighth of the
        memory."""
        first = case.draw()
        size = case.bytes(first)
        if self.tiny:
            return [first, case.draw()]
        properties = torch.cuda.get_device_properties(0)
        cache = getattr(properties, "L2_cache_size", CACHE)
        most = max(1, properties.total_memory // 8 // size)
        count = min(max(1, math.ceil(4 * cache / size)), most, 32)
        return [first, *(case.draw() for _ in range(count - 1))]


def agreement(case: Case) -> tuple[float, float]:
    """Returns the relative error of a case against the reference, and what it may be."""
    arguments = case.draw()
    got = case.results(arguments)
    with ops.backend("reference"):
        expected = case.results(arguments)
    half = arguments[0].dtype.itemsize == 2
    error = max(relative_error(a, b) for a, b in zip(got, expected, strict=True))
    return error, 2e-2 if half else 1e-4


def operators(run: Run) -> None:
    """Times the operators, native and eager; the large ones in float32 first."""
    for size in reversed(TINY if run.tiny else SIZES):
        for dtype in DTYPES:
            for group, case in listed(run, size, dtype):
                with torch.no_grad():
                    operator(run, group, case)


def compiled_operators(run: Run) -> None:
    """Times what one would write instead of the large operators in float32, compiled."""
    size = list(TINY if run.tiny else SIZES)[-1]
    for group, case in listed(run, size, torch.float32):
        if run.passes(group, "compiled"):
            continue
        torch.compiler.reset()
        compiled = torch.compile(case.eager or case.run, dynamic=False, backend=run.compiler)

        def timed(case: Case = case, compiled: Callable[..., Any] = compiled) -> Timing:
            return run.time(compiled, run.buffers(case), 0.1)

        with torch.no_grad(), ops.backend("reference"):
            attempt(run, group, "compiled", timed)


def listed(run: Run, size: str, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Lists the operators' cases of a size and a type, with their titles."""
    shape, flow = (TINY[size], (3, 2, 8, 12)) if run.tiny else (SIZES[size], FLOW)
    for case in operator_cases(shape, dtype, run.device, flow):
        yield f"{case.name}, {size}, {str(dtype)[6:]}", case


def operator(run: Run, group: str, case: Case) -> None:
    """Times a case of an operator."""
    sets = cache(partial(run.buffers, case))

    def native() -> Timing:
        # the reference's noise in PyTorch is slow: of it `check` has looked at smaller cases
        if case.eager is None:
            error, limit = agreement(case)
            if not error <= limit:
                raise ArithmeticError(f"relative error {error:.2g}")
        return run.time(case.run, sets(), 0.1)

    def eager() -> Timing:
        return run.time(case.eager or case.run, sets(), 0.1)

    for code, backend, timed in (("native", "native", native), ("eager", "reference", eager)):
        if not run.passes(group, code):
            with ops.backend(backend):
                attempt(run, group, code, timed, lambda: {"bytes": case.bytes(sets()[0])})


def attempt(
    run: Run,
    group: str,
    code: str,
    timed: Callable[[], Timing],
    work: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Adds a timing and what work it is of, or why there is none: of other cases there still
    are."""
    try:
        run.add(group, code, timed(), **work())
    except Exception as error:  # whatever a compiler raises
        run.add(group, code, None, problem=f"{type(error).__name__}: {error}"[:200])


def networks(run: Run, compiled: bool) -> None:
    """Times window networks: forward and its vector-Jacobian product."""
    tiny = run.tiny
    made: dict[str, Callable[[], Score]] = {}
    for batch in (2,) if tiny else (16, 128, 1024):
        made[f"MLP, B = {batch}"] = partial(mlp_score, batch, 16 if tiny else 256, run.device)
    for side, channels in ((8, (4, 8)),) if tiny else ((64, SMALL), (64, PAPER)):
        title = f"U-Net {channels}, 4 windows of {side}²"
        made[title] = partial(unet_score, side, channels, run.device)

    def work(make: Callable[[], Score], kind: str) -> Work:
        return make().work(kind, run.compiler)

    for title, make in made.items():
        for kind in ("forward", "vjp"):
            codes(run, f"{title}, {kind}", partial(work, make, kind), compiled)


def sampling(run: Run, compiled: bool, many: bool = False) -> None:
    """Times guided sampling with one correction a step; `many` flows take a time of their own."""
    tiny = run.tiny
    lorenz, flow = lorenz63(8 if tiny else 256), kolmogorov(*(8, (4, 8)) if tiny else (64, PAPER))
    cases = [("Lorenz-63", lorenz, batch, 8) for batch in ((2,) if tiny else (1, 16, 256, 1024))]
    cases = [("flow", flow, 16, 4)] if many else [*cases, ("flow", flow, 1, 4)]
    for title, problem, batch, steps in cases:
        group = f"{title} posterior, B = {batch}, C = 1, {steps} steps"
        make = partial(sampling_work, problem, batch, steps, 1)
        options: dict[str, Any] = {"device": run.device, "compiler": run.compiler}
        codes(run, group, partial(make, **options), compiled)


def codes(run: Run, group: str, make: Callable[[], Work], compiled: bool) -> None:
    """Times the codes of some work, the compiled one or the others, each after it has been compared
    with the eager one."""
    first = "compiled" if compiled else "eager"
    name, left_out = f"{group}, {first}", len(run.left_out)
    if name in run.ended or run.over(name):
        return
    torch.compiler.reset()
    try:
        work = make()
    except Exception as error:  # for instance for want of memory
        run.ended.append(name)
        return run.add(group, first, None, problem=f"{type(error).__name__}: {error}"[:200])
    for code, call in work.runs.items():
        if (code == "compiled") != compiled or run.passes(group, code):
            continue

        def timed(call: Callable[[], object] = call, code: str = code) -> Timing:
            with precision(code), work.within():
                work.check(code)
                return run.time(call, seconds=0.3)

        done = {"flops": work.flops, "bfloat16": is_half(code)}
        attempt(run, group, code, timed, partial(dict, done))
    if len(run.left_out) == left_out:
        run.ended.append(name)


def parts() -> Iterator[Callable[[Run], None]]:
    """Yields what is timed, what takes a compiler's time last."""
    yield from (partial(sampling, compiled=False), partial(networks, compiled=False), operators)
    yield partial(sampling, compiled=False, many=True)
    yield from (partial(sampling, compiled=True), partial(networks, compiled=True))
    yield compiled_operators


def main() -> None:
    parser = argparse.ArgumentParser(description="Time everything on a device.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    run = Run(arguments.device, clock.monotonic() + arguments.seconds, arguments.out)
    for part in parts():
        part(run)
    run.write()
    sys.exit(LEFT_OUT if run.left_out else 0)


if __name__ == "__main__":
    main()
