"""What a noise process is known by: the same in any process, and another for any other."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, GaussianScore, MCScoreNet, observation, sample
from sda_fast.composition import Centre, Junction
from sda_fast.kernels import VelocityKernel
from sda_fast.sampler.identity import digest_of, parts_of

STATE = (4, 2, 6, 6)

OPERATORS: dict[str, list[Callable[[], Any]]] = {
    "BlockMean": [
        lambda: observation.BlockMean(STATE, (2, 3)),
        lambda: observation.BlockMean(STATE, (3, 2)),
    ],
    "Composition": [
        lambda: observation.BlockMean(STATE, (2,)) @ observation.Subsample(STATE),
        lambda: observation.BlockMean(STATE, (2,)) @ observation.BlockMean(STATE, (1,)),
    ],
    "Function": [
        lambda: observation.Function(torch.sin, STATE, STATE),
        lambda: observation.Function(torch.cos, STATE, STATE),
    ],
    "Interpolate": [
        lambda: observation.Interpolate(STATE, torch.tensor([[1.5, 2.0]])),
        lambda: observation.Interpolate(STATE, torch.tensor([[1.25, 2.0]])),
    ],
    "Linear": [
        lambda: observation.Linear(STATE, torch.eye(6)),
        lambda: observation.Linear(STATE, 2 * torch.eye(6)),
        lambda: observation.Linear(STATE, torch.eye(6).to_sparse()),
    ],
    "Pointwise": [
        lambda: observation.Pointwise(torch.sin, STATE),
        lambda: observation.Pointwise(torch.sin, STATE, torch.cos),
    ],
    "Select": [
        lambda: observation.Select(STATE, torch.tensor([1, 2])),
        lambda: observation.Select(STATE, torch.tensor([1, 3])),
    ],
    "SparseMap": [
        lambda: observation.SparseMap((1, 1), (1, 1), *torch.zeros(2, 1, dtype=torch.long)),
        lambda: observation.SparseMap(
            (1, 1), (1, 1), *torch.zeros(2, 1, dtype=torch.long), leading=1
        ),
    ],
    "Stack": [
        lambda: observation.Stack(observation.Subsample(STATE)),
        lambda: observation.Stack(observation.Subsample(STATE), observation.Subsample(STATE)),
    ],
    "Subsample": [
        lambda: observation.Subsample(STATE, slice(0, 2)),
        lambda: observation.Subsample(STATE, slice(1, 3)),
        lambda: observation.Subsample(STATE, slice(0, 4, 2)),
    ],
    "Vorticity": [
        lambda: observation.Vorticity(STATE),
        lambda: observation.Vorticity(STATE, 0.5),
    ],
}


def test_every_operator_is_compared():
    assert {*OPERATORS} == {*observation.__all__} - {"ObservationOperator"}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str):
    digests = [digest_of(make()) for make in OPERATORS[name]]
    assert len({*digests}) == len(digests)
    assert [digest_of(make()) for make in OPERATORS[name]] == digests


DIFFERENT: list[Any] = [
    None,
    0,
    0.5,
    float("nan"),
    "0",
    b"0",
    (),
    (0,),
    (0, 0),
    ((0,), 0),
    {"a": 0},
    {"a": (0,)},
    {"b": 0},
    {0},
    slice(0, 1),
    slice(0, 1, 1),
    range(3),
    torch.float32,
    torch.zeros(2),
    torch.zeros(2, dtype=torch.float64),
    torch.zeros(1, 2),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.zeros(2, dtype=torch.complex64),
    torch.zeros(2).to_sparse(),
    torch.empty(2, device="meta"),
    torch.empty(0),
    np.zeros(2),
    np.zeros(2, np.float32),
    np.array([0, None]),
    Centre(1),
    Junction(3, 1),
    Junction(3, 2),
    nn.ReLU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.GELU,
    VelocityKernel(nn.Identity(), eta=1e-3),
    VelocityKernel(nn.Identity(), eta=1e-2),
    partial(torch.add, alpha=1),
    partial(torch.add, alpha=2),
    nn.Sequential(nn.ReLU(), nn.GELU()),
    nn.Sequential(nn.GELU(), nn.ReLU()),
]


def test_different_things():
    digests = [digest_of(x) for x in DIFFERENT]
    assert len({*digests}) == len(digests)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, np.int64(1)),
        ([1, 2], torch.Size((1, 2))),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (torch.arange(4.0).reshape(2, 2).T, torch.tensor([[0.0, 2.0], [1.0, 3.0]])),
        (lambda x: x, lambda x: x + 1),
        (object(), object()),
        (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    ],
)
def test_same_things(one: Any, other: Any):
    assert digest_of(one) == digest_of(other)


class Counting:
    """An operator of somebody's own, with a cache and a lock of another kind of its own."""

    def __init__(self, stride: int):
        self.stride = stride
        self.lock = self.other = Lock()
        self._calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self._calls += 1
        self.lock.taken += 1
        return x[:, :: self.stride]


class Lock:
    taken = 0


def test_objects_of_other_code():
    one, same, other = Counting(2), Counting(2), Counting(3)
    one(torch.zeros(1, 4))
    assert digest_of(one) == digest_of(same) != digest_of(other)


def test_cycles_end():
    one, other = nn.Module(), nn.Module()
    one.mine, other.mine = [one], [other]
    assert digest_of(one) == digest_of(other)

    sde = SimpleNamespace(shape=(3,))
    sde.eps = SimpleNamespace(sde=sde)
    assert {*parts_of(sde)} == {"sde", "sde.shape", "sde.eps", "sde.eps.sde"}


def test_where_it_is_does_not_matter():
    """The reference package keeps its device by an empty tensor, which holds anything."""
    sde = VPSDE(nn.Identity(), (3,))
    before = parts_of(sde)
    sde.device.fill_(7)
    assert parts_of(sde) == before


def posterior() -> VPSDE:
    torch.manual_seed(0)
    network = MCScoreNet(3, order=1, hidden_features=[16], composition=Centre(1))
    prior = VPSDE(network, (9, 3))
    A = observation.Subsample((9, 3), slice(None, None, 2), slice(0, 1))
    return VPSDE(GaussianScore(torch.ones(5, 1), A, None, prior, covariance=torch.eye(5)), (9, 3))


def test_sampling_does_not_change_it():
    sde = posterior()
    before = parts_of(sde)
    sample(sde, (2,), steps=2, corrections=1)
    assert parts_of(sde) == before


def test_same_in_another_process():
    script = "from test_identity import *; print(sorted(parts_of(posterior()).items()))"
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert said == {str(sorted(parts_of(posterior()).items()))}
