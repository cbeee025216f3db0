"""What a run costs, counted: evaluations, operators, allocations and, by valgrind, instructions.

Counts do not depend on how busy a machine is, so that they may be asserted where times may not.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from sda_fast import VPSDE, GaussianScore, MCScoreNet, _native, sample
from sda_fast.guidance.observed import observe
from sda_fast.observation import Subsample

needs_native = pytest.mark.skipif(not _native.available, reason=str(_native.reason))

SHAPE = (33, 3)


class Calls(TorchDispatchMode):
    """Counts the operators that torch is asked for, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def make(law: str) -> VPSDE:
    """Makes a prior whose network is fused, or a posterior of it, whose observation operator may be
    a callable."""
    network = MCScoreNet(3, order=2, embedding=8, hidden_features=[16] * 2, activation=nn.SiLU)
    prior = VPSDE(network.requires_grad_(False), SHAPE)
    if law == "prior":
        return prior
    operator = Subsample(SHAPE, slice(None, None, 8), slice(0, 1))
    A = operator if law == "posterior" else lambda x: 2 * x[:, ::8, :1]
    return VPSDE(GaussianScore(torch.zeros(5, 1), A, 0.05, prior, gamma=3e-2), SHAPE)


def run(sde: VPSDE, steps: int, corrections: int = 1, **options: Any) -> None:
    sample(sde, (2,), steps=steps, corrections=corrections, seed=0, backend="native", **options)


def calls_per_step(sde: VPSDE, corrections: int) -> dict[str, float]:
    """Counts the operators of a step: what a longer run has more than a shorter one."""
    counts = []
    for steps in (4, 4, 8, 16):  # the first run packs the weights
        with Calls() as calls:
            run(sde, steps, corrections)
        counts.append(calls.names)
    _, a, b, c = counts
    first = {name: (b[name] - a[name]) / 4 for name in b if b[name] != a[name]}
    later = {name: (c[name] - b[name]) / 8 for name in c if c[name] != b[name]}
    assert first == later
    return later


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("law", ["prior", "posterior"])
@pytest.mark.parametrize("denoise", [False, True])
def test_evaluations_of_a_sample(law: str, backend: str, denoise: bool) -> None:
    """The network sees each sample N (1 + C) times, and once more where the last is denoised."""
    if backend == "native" and not _native.available:
        pytest.skip(str(_native.reason))
    seen: list[int] = []

    class Counted(nn.Module):
        def forward(
            self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None = None
        ) -> torch.Tensor:
            seen.append(len(x))
            return 0.1 * x

    sde = make(law)
    (sde if law == "prior" else sde.eps.sde).eps = Counted()
    sample(sde, (3,), steps=4, corrections=2, seed=0, backend=backend, denoise=denoise)
    assert sum(seen) == 3 * (4 * (1 + 2) + denoise)


@needs_native
@pytest.mark.parametrize("corrections", [0, 2])
def test_operators_of_a_prior_s_step(corrections: int) -> None:
    calls = calls_per_step(make("prior"), corrections)
    own = {name[10:]: n for name, n in calls.items() if name.startswith("sda_fast::")}
    assert own.pop("langevin_", 0) == corrections
    assert own == {"mlp_score": 1 + corrections, "predictor_": 1}
    assert sum(calls.values()) <= 8 + 4 * corrections


@needs_native
@pytest.mark.parametrize("corrections", [0, 2])
def test_operators_of_a_guided_step(corrections: int) -> None:
    """One evaluation of the network and of its gradient for each estimate, and one pass after."""
    calls = calls_per_step(make("posterior"), corrections)
    own = {name[10:]: n for name, n in calls.items() if name.startswith("sda_fast::")}
    estimate = ("mlp_score", "mlp_score_vjp", "denoise", "subsample", "subsample_adjoint")
    assert own.pop("guide_langevin_", 0) == corrections
    assert own == {
        **dict.fromkeys((*estimate, "residual"), 1 + corrections),
        "guide_predictor_": 1,
    }
    assert sum(calls.values()) <= 13 + 9 * corrections


def changes(function: Callable[[], object]) -> tuple[list[Any], list[Any]]:
    """Returns the changes of memory of a call, in their order, and all that the profiler saw."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return memory, events


def peak_bytes(memory: list[Any]) -> int:
    return max(accumulate(event.nbytes() for event in memory), default=0)


def allocations(function: Callable[[], object]) -> tuple[Counter[str], int, int]:
    """Returns of a call how often each operator, with all that it calls, allocates memory; the
    peak, and what has not been given back."""
    memory, events = changes(function)
    spans = [e for e in events if "::" in e.name()]
    origins: Counter[str] = Counter()
    for event in memory:
        if event.nbytes() > 0:
            time = event.start_ns()
            around = [e for e in spans if 0 <= time - e.start_ns() <= e.duration_ns()]
            outermost = min(around, key=lambda e: e.start_ns(), default=None)
            origins["nothing" if outermost is None else outermost.name()] += 1
    return origins, peak_bytes(memory), sum(event.nbytes() for event in memory)


# How often the operators of an estimate allocate: what they return. What the network keeps for its
# gradient has the same memory every time.
PRIOR = {"mlp_score": 1}
GUIDED = {**PRIOR, "denoise": 1, "residual": 1, "mlp_score_vjp": 1}
SUBSAMPLED = {**GUIDED, "subsample": 1, "subsample_adjoint": 1}


@needs_native
@pytest.mark.parametrize("corrections", [0, 2])
@pytest.mark.parametrize(
    ("law", "own"), [("prior", PRIOR), ("posterior", SUBSAMPLED), ("callable", GUIDED)]
)
def test_allocations_of_a_step(law: str, own: dict[str, int], corrections: int) -> None:
    """A step allocates what its operators return, and what torch's autograd does to differentiate a
    callable: the sampler has no memory of its own from step to step. A long run holds no more than
    a short one."""
    sde = make(law)
    run(sde, 2, corrections)
    (few, low, _), (some, middle, _), (many, high, left) = (
        allocations(partial(run, sde, steps, corrections)) for steps in (4, 8, 16)
    )
    step = {name: (some[name] - few[name]) / 4 for name in some if some[name] != few[name]}
    assert step == {n: (many[n] - some[n]) / 8 for n in many if many[n] != some[n]}

    estimates = 1 + corrections
    ours = {name[10:]: n / estimates for name, n in step.items() if name.startswith("sda_fast::")}
    assert ours == own

    beside: Counter[str] = Counter()
    if law == "callable":
        x = torch.zeros(2, *SHAPE)
        each, _, _ = allocations(partial(observe_and_pull, sde.eps.A, x, torch.zeros(2, 5, 1)))
        beside += Counter({name: n * estimates for name, n in each.items()})
    assert {name: n for name, n in step.items() if name[:10] != "sda_fast::"} == beside

    # but for the times of the grid, four numbers each
    assert middle - low <= 4 * 8 * 4
    assert high - middle <= 4 * 8 * 8
    assert left == 0


def observe_and_pull(A: Any, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """Does what a step does with a callable."""
    with torch.no_grad():
        _, transposed = observe(A, x)
        return transposed(cotangent)


# Memory

NETWORK = """
def make(batch, length):
    x = torch.randn(batch, length, 3)
    network.plan(length)

    def run():
        with torch.no_grad(), sampling():
            eps, vjp = network.linearise(x, torch.tensor(0.3))
            eps = vjp(eps)
        return 3 * x.nbytes  # what it is given and returns

    return run
"""
SAMPLE = """
def make(batch, length):
    prior = VPSDE(network, (length, 3))
    A = Subsample(prior.shape, slice(None, None, 8), slice(0, 1))
    sde = VPSDE(GaussianScore(torch.zeros(A.shape), A, 1.0, prior), prior.shape)

    def run():
        sample(sde, (batch,), steps=2, corrections=1, order=2)
        return 0

    return run
"""
PEAK = """
import ctypes, sys, torch
from sda_fast import VPSDE, GaussianScore, MCScoreNet, sample
from sda_fast.observation import Subsample
from sda_fast.score import sampling

def status(name):
    with open("/proc/self/status") as lines:
        (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1]) * 1024

torch.set_num_threads(2)
network = MCScoreNet(3, order=2, hidden_features=[128] * 5).requires_grad_(False)
for batch, length in ((1, 9), *(tuple(map(int, case.split("x"))) for case in sys.argv[1:])):
    run = make(batch, length)
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    given = run()
    print(status("VmHWM") - before - given)
"""

needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")


def peaks(make: str, *cases: str) -> list[int]:
    """Measures the peak memory of runs one after the other, of batches and lengths "BxL"."""
    program = PEAK.replace("for batch", f"{make}\nfor batch", 1)
    command = [sys.executable, "-c", program, *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))[1:]  # the first one loads and packs


@needs_native
@needs_linux
def test_memory_of_a_network() -> None:
    """What evaluating a network and its gradient takes is what is told of it, which does not grow
    with the trajectories."""
    fused = (
        MCScoreNet(3, order=2, hidden_features=[128] * 5)
        .requires_grad_(False)
        .fused(torch.zeros(1, 9, 3))
    )
    assert not isinstance(fused, str)
    packed = fused.weights.nbytes + fused.transposed.nbytes

    # each by itself, as memory is kept from one to the next
    for batch, length in ((32, 65), (128, 65), (1, 20000), (8, 20000)):
        (found,) = peaks(NETWORK, f"{batch}x{length}")
        told = fused.bytes(batch * (length - 4), gradient=True) - packed
        assert found < 16e6
        assert 0.8 < found / told < 1.3, (batch, length)


@needs_native
@needs_linux
def test_memory_of_a_sample() -> None:
    """It grows with the states by what the sampler and the plan keep of each, no more."""
    few, many = 40_000, 240_000  # since huge pages come and go by some MB
    low, high = peaks(SAMPLE, f"1x{few}", f"1x{many}")
    assert 12 < (high - low) / (many - few) < 300


# Instructions

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels in programs of their own, compiled for AVX2, which valgrind knows."""
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which("valgrind") is None:
        pytest.skip("needs x86-64 and valgrind")
    if not (HERE.parent / "csrc").is_dir():
        pytest.skip("there is no source tree here")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")

    folder = tmp_path_factory.mktemp("costs")
    flags = ["-std=c++20", "-O3", "-mavx2", "-mfma", "-mf16c", "-DSDA_FAST_VARIANT=avx2"]
    flags += ["-fno-math-errno", "-fno-trapping-math"]
    for name, contract in (("loops", "off"), ("tiles", "fast")):  # as loops.cpp and tiles.cpp
        options = [*flags, f"-ffp-contract={contract}", "-o", folder / name]
        subprocess.run([compiler, *options, HERE / "costs.cpp"], check=True)
    return folder


def instructions(program: Path, kernel: str, size: int) -> int:
    """Counts the instructions of a run of a kernel."""
    program /= "tiles" if kernel in TILES else "loops"
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    done = subprocess.run(
        [*tool, program, kernel, str(size)], check=True, capture_output=True, text=True
    )
    (count,) = re.findall(r"I\s+refs:\s+([\d,]+)", done.stderr)
    return int(count.replace(",", ""))


# What an element took when it was last counted by GCC 12, and half as much again: another compiler
# may take a little more, but a loop that is no longer vectorised takes several times as much. Of
# gather an element is a window of 5, of the networks a sixteenth of one, of winograd one of the
# result.
MOST = {
    "predictor": 1.13,
    "philox_normal": 16.0,
    "gather": 160.0,
    "compose": 35.0,
    "langevin": 18.0,
    "residual": 2.8,
    "norm_pad": 22.0,
    "activation_pad": 16.0,
    "mlp_score": 323.0,
    "mlp_score_vjp": 610.0,
    "winograd": 42.0,
}
# compiled as tiles.cpp is
TILES = {"norm_pad", "activation_pad", "mlp_score", "mlp_score_vjp", "winograd"}


def test_instructions_of_an_element(program: Path) -> None:
    few, many = 2**14, 2**15
    each = {
        kernel: (instructions(program, kernel, many) - instructions(program, kernel, few))
        / (many - few)
        for kernel in ("nothing", *MOST)
    }
    rest = each.pop("nothing")  # what the program does but for the kernel
    for kernel, count in each.items():
        assert 0 < count - rest <= MOST[kernel], kernel
