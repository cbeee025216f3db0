"""Times operators, networks and guided steps on a GPU, and writes JSON.

    python -m benchmarks.gpu.timing --out timings.json [--seconds 90] [--device cpu]

Random inputs, drawn anew for every case, in several buffers that together are beyond the cache.
A result that does not agree with the reference is not timed but reported. What the time does not
suffice for is left out, and named.
"""

import argparse
import json
import math
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sda_fast import ops

from ..samples import kolmogorov, lorenz63, sampling_work
from ..turns import Work, is_half, precision
from ..workloads import PAPER, SMALL, Score, mlp_score, relative_error, unet_score
from .cases import DTYPES, FLOW, SIZES, TINY, Case, operator_cases
from .clock import Timing, time

CACHE = 64 * 2**20  # where torch does not tell


@dataclass
class Run:
    """A benchmark run: what it measures, on which device and for how long."""

    device: str
    until: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

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

    def time(self, run: Callable[..., Any], sets: Any = ((),), seconds: float = 0.2) -> Timing:
        if self.tiny:
            return time(run, sets, self.device, rounds=3, seconds=0.0)
        return time(run, sets, self.device, seconds=seconds)

    def add(self, group: str, code: str, timing: Timing | None, **more: Any) -> None:
        row = {"group": group, "code": code, **(asdict(timing) if timing else {}), **more}
        self.rows.append(row)
        shown = f"{1e6 * timing.median:10.1f} us" if timing else more.get("problem", "")
        print(f"{group:44s} {code:18s} {shown}", flush=True)

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
                if not run.over(group):
                    with torch.no_grad():
                        operator(run, group, case)


def compiled_operators(run: Run) -> None:
    """Times what one would write instead of the large operators in float32, compiled."""
    size = list(TINY if run.tiny else SIZES)[-1]
    for group, case in listed(run, size, torch.float32):
        if run.over(f"{group}, compiled"):
            continue
        torch.compiler.reset()
        compiled = torch.compile(case.eager or case.run, dynamic=False, backend=run.compiler)
        with torch.no_grad(), ops.backend("reference"):
            sets = run.buffers(case)
            attempt(run, group, "compiled", partial(run.time, compiled, sets, 0.1))


def listed(run: Run, size: str, dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Lists the operators' cases of a size and a type, with their titles."""
    shape, flow = (TINY[size], (3, 2, 8, 12)) if run.tiny else (SIZES[size], FLOW)
    for case in operator_cases(shape, dtype, run.device, flow):
        yield f"{case.name}, {size}, {str(dtype)[6:]}", case


def operator(run: Run, group: str, case: Case) -> None:
    """Times a case of an operator."""
    with ops.backend("native"):
        # the reference's noise in PyTorch is slow: of it `check` has looked at smaller cases
        if case.eager is None:
            error, limit = agreement(case)
            if not error <= limit:
                return run.add(group, "native", None, problem=f"relative error {error:.2g}")
        sets = run.buffers(case)
        traffic = {"bytes": case.bytes(sets[0])}
        attempt(run, group, "native", lambda: run.time(case.run, sets, 0.1), **traffic)

    with ops.backend("reference"):
        attempt(run, group, "eager", lambda: run.time(case.eager or case.run, sets, 0.1), **traffic)


def attempt(run: Run, group: str, code: str, timed: Callable[[], Timing], **more: Any) -> None:
    """Adds a timing, or why there is none: of the other cases there still are."""
    try:
        run.add(group, code, timed(), **more)
    except Exception as error:  # whatever a compiler raises
        run.add(group, code, None, problem=f"{type(error).__name__}: {error}"[:200], **more)


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


def sampling(run: Run, compiled: bool) -> None:
    """Times guided sampling with one correction a step."""
    tiny = run.tiny
    lorenz, flow = lorenz63(8 if tiny else 256), kolmogorov(*(8, (4, 8)) if tiny else (64, PAPER))
    cases = [("Lorenz-63", lorenz, batch, 8) for batch in ((2,) if tiny else (1, 16, 256, 1024))]
    cases += [("flow", flow, batch, 4) for batch in ((1,) if tiny else (1, 16))]
    for title, problem, batch, steps in cases:
        group = f"{title} posterior, B = {batch}, C = 1, {steps} steps"
        make = partial(sampling_work, problem, batch, steps, 1)
        options: dict[str, Any] = {"device": run.device, "compiler": run.compiler}
        codes(run, group, partial(make, **options), compiled)


def codes(run: Run, group: str, make: Callable[[], Work], compiled: bool) -> None:
    """Times the codes of some work, the compiled one or the others, each after it has been compared
    with the eager one."""
    if run.over(group):
        return
    torch.compiler.reset()
    try:
        work = make()
    except Exception as error:  # for instance for want of memory
        return run.add(group, "eager", None, problem=f"{type(error).__name__}: {error}"[:200])
    for code, call in work.runs.items():
        if (code == "compiled") != compiled or run.over(f"{group}, {code}"):
            continue

        def timed(call: Callable[[], object] = call, code: str = code) -> Timing:
            with precision(code), work.within():
                work.check(code)
                return run.time(call, seconds=0.3)

        attempt(run, group, code, timed, flops=work.flops, bfloat16=is_half(code))


def parts() -> Iterator[Callable[[Run], None]]:
    """Yields what is timed, what takes a compiler's time last."""
    yield from (partial(sampling, compiled=False), partial(networks, compiled=False), operators)
    yield from (partial(sampling, compiled=True), partial(networks, compiled=True))
    yield compiled_operators


def main() -> None:
    parser = argparse.ArgumentParser(description="Time everything on a device.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    run = Run(arguments.device, clock.monotonic() + arguments.seconds)
    for part in parts():
        part(run)
        content = {"device": run.device, "cases": run.rows, "left_out": run.left_out}
        arguments.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
