"""Evaluations that are captured once and replayed, with a stand-in for CUDA's graphs on the CPU."""

from collections.abc import Callable
from typing import TypeVar

import oracles
import pytest
import torch
from test_sampler import GAMMA, NETWORKS, assert_same, observe
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sda_fast import VPSDE, DPSGaussianScore, GaussianScore, LikelihoodScore, explain, sample
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

    def capture(function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
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
    def refuse(function: Callable) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graph, "capture", refuse)
    sde = prior("mlp")
    assert torch.equal(sample(sde, (3,), **OPTIONS), eagerly(sde, (3,), **OPTIONS))
    told = str(explain(sde, (3,), **{k: v for k, v in OPTIONS.items() if k != "seed"}))
    assert "operation not permitted when stream is capturing\n" in told


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
