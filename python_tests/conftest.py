"""What all tests share."""

from collections.abc import Callable, Iterator

import pytest
import torch


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seeds what a module draws when imported, such as the networks that its tests take."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test on one thread, unless it is slow: on tensors as small as most tests' threads only
    wait for each other, on a busy machine very long."""
    before = torch.get_num_threads()
    if "slow" not in request.keywords:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads(_one_thread: None) -> Callable[[int], None]:
    """Sets the number of torch's threads, for the test."""
    return torch.set_num_threads


@pytest.fixture
def small_cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the studies of Lorenz-63 filter with few particles, and learn from little."""
    from experiments.lorenz import cases, parameter, trajectory_network

    monkeypatch.setattr(cases, "PARTICLES", 512)
    monkeypatch.setattr(cases, "SPIN_UP", 50)
    monkeypatch.setattr(parameter, "GRID", 5)
    monkeypatch.setattr(parameter, "PARTICLES", 256)
    monkeypatch.setattr(parameter, "SPIN_UP", 50)
    for learnt in (parameter, trajectory_network):
        monkeypatch.setattr(learnt, "TRAJECTORIES", 8)
    cached = (cases.attractor, cases.make_case, parameter.prepared, parameter.data)
    cached += (trajectory_network.data,)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()
