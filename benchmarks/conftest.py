"""What all suites share: codes that take turns, and the machine's facts and floors in the JSON."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from .probe import measure
from .results import TIMINGS, facts, stamp
from .samples import PEERS, Problem, sampling_work
from .turns import Measured, Replay, Work, is_half, take_turns

_load_before = os.getloadavg()[0]
_replay = Replay()
_groups: dict[tuple[str, ...], tuple[Measured, dict[str, Any]]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sda_fast")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="what to time on")
    group.addoption("--threads", type=int, nargs="+", help="numbers of threads, by default torch's")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "threads" in metafunc.fixturenames:
        counts = metafunc.config.getoption("threads") or [torch.get_num_threads()]
        metafunc.parametrize("threads", counts, indirect=True, ids=lambda n: f"{n}threads")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "timed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=_replay))
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # a compiler's, of what it does


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Measures the floors, in the run that is held against them, and the machine's load."""
    device = config.getoption("device")
    counts = config.getoption("threads") or [torch.get_num_threads()]
    torch.set_num_threads(max(counts))
    machine_info["sda_fast"] = {
        **stamp(TIMINGS, facts(device, max(counts)), _load_before),
        "floors": asdict(measure(device)),
    }


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("device")


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()


def _group(item: Any) -> tuple[str, ...]:
    """Returns what the tests of a group have in common: the function, and all but the code."""
    others = (f"{name}={value!r}" for name, value in item.callspec.params.items() if name != "code")
    return (item.nodeid.partition("[")[0], *sorted(others))


@pytest.fixture
def timed(
    request: pytest.FixtureRequest, benchmark: Any, threads: int, device: str
) -> Callable[..., None]:
    """Times a code of a group: `timed(title, make)`, where `make` makes the group's work.

    What one thread does is timed by the processor's time, which leaves out when others have it,
    but for `processes`.
    """
    node, config = request.node, request.config
    code = node.callspec.params["code"]

    def turns(work: Work, clock: Callable[[], float]) -> Measured:
        wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
        if benchmark.disabled:
            return take_turns(work, [code], clock, 0.0, 1, wait)
        items = (item for item in request.session.items if hasattr(item, "callspec"))
        codes = [i.callspec.params["code"] for i in items if _group(i) == _group(node)]
        seconds = float(config.getoption("benchmark_max_time"))
        rounds = config.getoption("benchmark_min_rounds")
        return take_turns(work, codes, clock, seconds, rounds, wait)

    def timed(title: str, make: Callable[[], Work], processes: bool = False) -> None:
        own = threads == 1 and device == "cpu" and not processes
        if _group(node) not in _groups:
            work = make()
            measured = turns(work, time.process_time if own else time.perf_counter)
            costs = {"flops": work.flops, "bytes": work.bytes, "in_place": work.in_place}
            _groups[_group(node)] = measured, costs
        measured, costs = _groups[_group(node)]
        if benchmark.disabled:
            del _groups[_group(node)]
        if code in measured.problems:
            problem = measured.problems[code]
            if code == "compiled" and type(problem).__module__ == "torch._inductor.exc":
                pytest.skip(f"torch's compiler fails: {str(problem).partition(chr(10))[0]}")
            raise problem

        suite = request.module.__name__.rpartition("test_")[2]
        benchmark.group = f"{title} ({threads} thread{'s' * (threads > 1)})"
        benchmark.extra_info.update(suite=suite, code=code, threads=threads)
        benchmark.extra_info.update(bfloat16=is_half(code), **costs)
        _replay.load(measured.times[code])
        benchmark.pedantic(lambda: None, rounds=len(measured.times[code]))

    return timed


@pytest.fixture
def drawn(
    timed: Callable[..., None], device: str, law: str, batch: int, corrections: int, code: str
) -> Callable[[str, Problem, int], None]:
    """Times a code that draws samples: `drawn(title, problem, steps)`."""

    def time(title: str, problem: Problem, steps: int) -> None:
        if code == "azula" and law == "posterior":
            pytest.skip("azula draws from the prior")
        if code in PEERS:
            pytest.importorskip(PEERS[code], exc_type=ImportError)
        options = {"guided": law == "posterior", "device": device, "peers": device == "cpu"}
        timed(
            f"{title} {law}, B = {batch}, C = {corrections}",
            lambda: sampling_work(problem, batch, steps, corrections, **options),
        )

    return time
