"""Evaluations that are captured once and replayed, with a stand-in for CUDA's graphs on the CPU."""

import math
import warnings
import weakref
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import TypeVar

import oracles
import pytest
import torch
from test_sampler import GAMMA, NETWORKS, assert_same, observe
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sda_fast import (
    VPSDE,
    DPSGaussianScore,
    GaussianScore,
    LikelihoodScore,
    Spectrum,
    explain,
    sample,
)
from sda_fast import likelihood as likelihoods
from sda_fast.guidance import MMPSGaussianScore
from sda_fast.sampler import estimate, graph, run

T = TypeVar("T")
OPTIONS = {"steps": 8, "corrections": 1, "tau": 0.3, "seed": 1}


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes evaluations be captured on the CPU: a replay calls the function once more, and writes
    where the first call did. Counts the replays of each graph."""
    replays: list[int] = []

    def capture(function: Callable[[], T], pool: None) -> tuple[T, Callable[[], None]]:
        result = function()
        replays.append(0)
        which = len(replays) - 1

        def replay() -> None:
            replays[which] += 1
            for kept, new in zip(tree_leaves(result), tree_leaves(function()), strict=True):
                if kept is not None:
                    kept.copy_(new)

        return result, replay

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(estimate, "unserved", lambda plan: None)
    monkeypatch.setattr(run, "unserved", lambda plan: None)
    return replays


def waiting(x: Tensor) -> Tensor:
    """Observes as `observe`, and looks at a number."""
    return observe(x) if x.sum().item() < torch.inf else observe(2 * x)


def eagerly(*args, **kwargs) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "unserved", lambda plan: "not now")
        return sample(*args, **kwargs)


def prior(network: str) -> VPSDE:
    build, shape = NETWORKS[network]
    return VPSDE(build(), shape)


GUIDES = {
    "gaussian": lambda y, sde: GaussianScore(y, observe, 0.5, sde, GAMMA),
    "detached": lambda y, sde: GaussianScore(y, observe, 0.5, sde, GAMMA, detach=True),
    "dps": lambda y, sde: DPSGaussianScore(y, observe, sde, 0.5),
    "mmps": lambda y, sde: MMPSGaussianScore(y, observe, 0.5, sde, iterations=2),
    "likelihood": lambda y, sde: LikelihoodScore(likelihoods.Huber(y, observe, 0.5), sde, GAMMA),
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_prior(network: str, order: int, captures: list[int]):
    sde = prior(network)
    options = OPTIONS | {"order": order, "denoise": True}
    assert torch.equal(sample(sde, (3,), **options), eagerly(sde, (3,), **options))
    assert captures == [2 + 8 + 8 + 1]  # two to compare, and each evaluation


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("network", ["mlp", "unet2"])
def test_guided(network: str, guide: str, captures: list[int]):
    """The levels are tensors to a captured step and numbers to another, which rounds elsewhere."""
    process = prior(network)
    y = observe(torch.randn(1, *process.shape))[0]
    sde = VPSDE(GUIDES[guide](y, process), process.shape)
    assert_same(sample(sde, (3,), **OPTIONS), eagerly(sde, (3,), **OPTIONS), 1e-4)
    assert captures == [2 + 8 + 8]


def test_parts(captures: list[int], monkeypatch: pytest.MonkeyPatch):
    """Each part of the samples has a graph of its own, at its place in memory."""
    process = prior("mlp")
    y = observe(torch.randn(1, *process.shape))[0]
    guidance = GaussianScore(y, observe, 0.5, process, GAMMA)
    sde = VPSDE(guidance, process.shape)
    expected = eagerly(sde, (5,), **OPTIONS)
    monkeypatch.setattr(guidance, "at_once", lambda x, *context: 2)
    assert_same(sample(sde, (5,), **OPTIONS), expected, 1e-4)
    assert captures == [2 + 8 + 8] * 3


def test_estimate_with_a_state_of_its_own(captures: list[int]):
    """What does not give the same numbers twice is not replayed."""
    calls = 0

    def eps(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * (1 + calls)

    sde = oracles.Process(eps, (4,))
    parts = {name: (served, why) for name, served, why in explain(sde, (2,), steps=20).parts}
    assert parts["launches"] == ("eager", "replayed, it does not give the same numbers")
    sample(sde, (2,), steps=20)
    assert captures == [1, 1]


def test_estimate_that_cannot_be_captured(captures: list[int], monkeypatch: pytest.MonkeyPatch):
    def refuse(function: Callable, pool: None) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graph, "capture", refuse)
    sde = prior("mlp")
    assert torch.equal(sample(sde, (3,), **OPTIONS), eagerly(sde, (3,), **OPTIONS))
    told = str(explain(sde, (3,), **{k: v for k, v in OPTIONS.items() if k != "seed"}))
    assert "operation not permitted when stream is capturing\n" in told


def other_weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: 1.5 * value for name, value in network.state_dict().items()}


CHANGES = {
    "y": lambda guidance, network: setattr(guidance, "y", 2 * guidance.y),
    "zeta": lambda guidance, network: setattr(guidance, "zeta", 0.1),
    "operator": lambda guidance, network: setattr(guidance, "A", lambda x: observe(2 * x)),
    "elsewhere": lambda guidance, network: [
        setattr(p, "data", 1.5 * p) for p in network.parameters()
    ],
    "in place": lambda guidance, network: [p.mul_(1.5) for p in network.parameters()],
    "loaded": lambda guidance, network: network.load_state_dict(
        other_weights(network), assign=True
    ),
    "network": lambda guidance, network: setattr(guidance.sde, "eps", prior("mlp").eps),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_by_a_callback(change: str, captures: list[int]):
    """A graph reads what was there when it was captured, at its place in memory."""

    def draw(by: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(0)
        process = prior("mlp")
        y = observe(torch.randn(1, *process.shape))[0]
        guidance = DPSGaussianScore(y, observe, process, 0.5)

        def callback(n: int, t: float, x: Tensor) -> None:
            if n == 3:
                CHANGES[change](guidance, process.eps)

        return by(VPSDE(guidance, process.shape), (3,), **OPTIONS, callback=callback)

    assert_same(draw(sample), draw(eagerly), 1e-4)
    assert captures == [2 + 3 + 3]


class FakeCuda:
    """What `torch.cuda` is asked for by a capture, on the CPU: notes what is done to it. Its graph
    fails in the end, as torch's does of what waits for the device, and leaves its stream."""

    def __init__(self, patch: pytest.MonkeyPatch, fails: bool = False):
        self.told: list[str] = []
        self.current = self.default = self._stream("default")
        self.mode, self.fails, self.underway, self.stuck = 0, fails, False, False
        generator = SimpleNamespace(
            get_state=lambda: self.told.append("state kept"),
            set_state=lambda state: self.told.append("state set"),
            clone_state=lambda: None,
            graphsafe_set_state=lambda state: setattr(self, "stuck", False),
        )
        for name, value in {
            "Stream": lambda device: self._stream("side"),
            "current_stream": lambda: self.current,
            "CUDAGraph": lambda: SimpleNamespace(
                reset=lambda: self.told.append("reset"), replay=lambda: None
            ),
            "graph_pool_handle": lambda: (0, 1),
            "stream": self.stream,
            "graph": self.graph,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "default_generators": [generator],
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        patch.setattr(torch, "rand", self.rand)
        # its streams go with it
        patch.setattr(graph, "_side", cache(graph._side.__wrapped__))

    def _stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            device_index=0, wait_stream=lambda other: self.told.append(f"{name} waits")
        )

    @contextmanager
    def stream(self, stream: SimpleNamespace):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode: str):
        self.underway = self.stuck = self.fails
        self.current = stream
        try:
            yield
        finally:
            if self.fails:
                raise RuntimeError("operation failed due to a previous error during capture")

    def set_mode(self, mode: int | str) -> None:
        warnings.warn("a prototype", UserWarning, stacklevel=1)
        self.mode = {"warn": 1}.get(mode, mode)

    def synchronize(self) -> None:
        """Does what waits for the device."""
        if self.mode == 1:
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)

    def end(self, device: int, pool: tuple[int, int]) -> None:
        if not self.underway:
            raise RuntimeError("not currently recording")
        self.underway = False

    def release(self, device: int, pool: tuple[int, int]) -> None:
        self.told.append("released")

    def rand(self, *args, **kwargs) -> None:
        if self.stuck:
            raise RuntimeError("Offset increment outside graph capture")


def test_capture(monkeypatch: pytest.MonkeyPatch):
    cuda, calls = FakeCuda(monkeypatch), []
    result, _ = graph.capture(lambda: calls.append(cuda.mode) or len(calls))
    assert result == 3
    assert calls == [0, 1, 0]  # the second is looked at
    assert cuda.told == ["side waits", "default waits"]
    assert cuda.current is cuda.default


def test_capture_holds_what_it_reads(monkeypatch: pytest.MonkeyPatch):
    """And not what it computes."""
    FakeCuda(monkeypatch)
    kept, computed = [torch.ones(3), torch.ones(3), torch.eye(3).to_sparse()], []

    def function() -> torch.Tensor:
        computed[:] = [weakref.ref(y := kept[0].view(3, 1) + 1)]
        return torch.sparse.mm(kept[2], y * kept[1])

    result, replay = graph.capture(function)
    seen = [weakref.ref(x) for x in kept]
    kept.clear()
    assert all(x() is not None for x in seen)
    assert computed[0]() is None
    del replay
    assert all(x() is None for x in seen)
    assert result.shape == (3, 3)


def test_capture_of_what_waits(monkeypatch: pytest.MonkeyPatch):
    """It is not begun."""
    cuda = FakeCuda(monkeypatch)
    with pytest.raises(RuntimeError, match=r"waits for the device, at test_sampler_graph.py:\d+"):
        graph.capture(cuda.synchronize)
    assert cuda.told == ["side waits", "default waits"]
    assert cuda.mode == 0
    assert cuda.current is cuda.default


@pytest.mark.parametrize("thorough", [False, True])
def test_capture_that_fails(thorough: bool, monkeypatch: pytest.MonkeyPatch):
    """Torch is put in order, as far as it has not done that itself."""
    cuda = FakeCuda(monkeypatch, fails=True)

    def function() -> None:
        if thorough:  # as torch is of late
            cuda.underway = cuda.stuck = False

    with pytest.raises(RuntimeError, match="during capture"):
        graph.capture(function)
    released = [] if thorough else ["released"]
    assert cuda.told == [
        *("side waits", "reset", *released, "state kept", "state set", "default waits")
    ]
    assert not cuda.underway
    assert not cuda.stuck
    assert cuda.current is cuda.default


def test_explain(captures: list[int]):
    sde = prior("mlp")
    told = explain(sde, (3,), steps=20)
    assert ("launches", "graph", "an evaluation is captured once and replayed") in told.parts
    assert captures == [2]


def test_where_it_is_tried():
    """By default on CUDA alone, and where it pays."""
    told = explain(prior("mlp"), (3,), steps=20)
    assert "launches" not in {name for name, _, _ in told.parts}
    assert graph.unserved(told) == "the device is cpu"
    object.__setattr__(told, "device", torch.device("cuda"))
    assert graph.unserved(told) is None
    object.__setattr__(told, "corrections", ())
    object.__setattr__(told, "times", told.times[:4])
    assert graph.unserved(told) == "it pays from 16 evaluations on"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("guide", ["prior", "gaussian"])
@pytest.mark.parametrize("network", ["mlp", "unet2"])
def test_on_a_gpu(network: str, guide: str):
    """Captured, the samples are those of the CPU."""
    sde = process = prior(network)
    if guide == "gaussian":
        y = observe(torch.randn(1, *process.shape))[0]
        sde = VPSDE(GUIDES[guide](y, process), process.shape)
    expected = sample(sde, (3,), **OPTIONS)
    sde.to("cuda")
    told = explain(sde, (3,), **{k: v for k, v in OPTIONS.items() if k != "seed"})
    assert "graph" in {served for name, served, _ in told.parts if name == "launches"}, str(told)
    assert_same(sample(sde, (3,), **OPTIONS).cpu(), expected, 1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("guide", ["spectrum", "mmps", "item"])
def test_what_waits_on_a_gpu(guide: str, backend: str):
    """What cannot be captured is sampled as before, and leaves torch in order."""
    process = prior("mlp")
    y, size = observe(torch.randn(1, *process.shape))[0], math.prod(process.shape)
    white = Spectrum(torch.eye(size).reshape(*process.shape, size), torch.ones(size))
    make = {
        "spectrum": lambda: GaussianScore(y, observe, 0.5, process, white),
        "mmps": lambda: MMPSGaussianScore(y, observe, 0.5, process),
        "item": lambda: GaussianScore(y, waiting, 0.5, process, GAMMA),
    }
    sde = VPSDE(make[guide](), process.shape)
    expected = sample(sde, (3,), **OPTIONS, backend=backend)
    sde.to("cuda")
    options = {k: v for k, v in OPTIONS.items() if k != "seed"} | {"backend": backend}
    told = {name: (by, why) for name, by, why in explain(sde, (3,), **options).parts}
    assert told["launches"][0] == "eager"
    assert "waits for the device" in told["launches"][1]
    assert_same(sample(sde, (3,), **OPTIONS, backend=backend).cpu(), expected, 1e-2)
    assert_in_order()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_failed_capture_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """What waits unseen spoils the capture, and leaves torch in order all the same."""
    monkeypatch.setattr(graph, "_without_waiting", nullcontext)
    x = torch.randn(8, device="cuda")
    state = torch.cuda.get_rng_state()
    with pytest.raises(RuntimeError):
        graph.capture(lambda: (x + 1).sum().item())
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert_in_order()
    result, replay = graph.capture(lambda: 2 * x)
    x.fill_(3.0)
    replay()
    assert torch.equal(result, torch.full_like(x, 6.0))


def assert_in_order() -> None:
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0
    assert torch.randn(3, device="cuda").isfinite().all()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_parts_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """A graph leaves the results of those before it that it shares memory with."""
    process = prior("mlp")
    y = observe(torch.randn(1, *process.shape))[0]
    guidance = GaussianScore(y, observe, 0.5, process, GAMMA)
    sde = VPSDE(guidance, process.shape).to("cuda")
    expected = eagerly(sde, (5,), **OPTIONS)
    monkeypatch.setattr(guidance, "at_once", lambda x, *context: 2)
    assert_same(sample(sde, (5,), **OPTIONS), expected, 1e-4)

    x = torch.randn(3, 1000, device="cuda")
    first, replay = graph.capture(
        lambda: (x + 1).sin().cos(), pool := torch.cuda.graph_pool_handle()
    )
    second, other = graph.capture(lambda: (x + 2).sin().cos(), pool)
    for again in (replay, other, replay, other):
        again()
    torch.testing.assert_close(first, (x + 1).sin().cos())
    torch.testing.assert_close(second, (x + 2).sin().cos())


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_gpu():
    """A capture is made on the device of the state, not on the current one."""
    sde = prior("mlp").to("cuda:1")
    told = explain(sde, (3,), steps=20)
    assert ("launches", "graph", "an evaluation is captured once and replayed") in told.parts
