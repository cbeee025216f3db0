"""The study of precisions, in small."""

import pytest
import torch

from experiments import front_flow, precision
from experiments.precision import FLOW, Extent
from sda_fast import Recipe, _native

TINY = precision.Profile(
    lorenz=Extent(trajectories=2, truths=1, members=8),
    flow=Extent(trajectories=1, truths=1, members=2, grid=64),
)


@pytest.fixture(autouse=True)
def _small(small_cases, monkeypatch):
    """Few particles, and of the flow short trajectories and one step."""
    monkeypatch.setattr(precision, "STATES", 4)
    draft = Recipe("", front_flow.RULE, 1, 0, 1.0, clip=5.0)
    presets = {"fast": precision.preset("fast"), "draft": draft}
    monkeypatch.setattr(precision, "preset", presets.get)
    precision.reference.cache_clear()
    yield
    precision.reference.cache_clear()


def test_run(tmp_path):
    report = precision.run(tmp_path, TINY)
    assert (tmp_path / "precision.md").read_text() == report + "\n"
    estimates, posteriors = (part.splitlines()[2:] for part in report.split("\n\n"))
    assert len(estimates) == len(precision.PRIORS) * len(precision.LEVELS)
    assert len(posteriors) == 2 * len(precision.METRICS) + len(precision.FLOW_METRICS)

    for line in estimates:
        assert float(line.split(" | ")[-1].rstrip(" |")) < 1.1  # no estimate is 1 away
        high, low, high_gradient, low_gradient = map(float, line.split(" | ")[2:6])
        assert high < 1e-5
        assert high_gradient < 1e-5
        if _native.has_bfloat16():
            assert 1e-4 < low < 0.2
            assert 1e-4 < low_gradient < 2e-2


def test_estimates_of_the_flow_are_of_states_that_follow_each_other():
    cell = precision.Estimate(FLOW, "highest", 0.1, trajectories=2, grid=64)
    x = precision.PRIORS[FLOW].simulate(cell, torch.Generator())
    assert x.shape == (2, precision.STATES, 2, 32, 32)
    assert float(x.std()) == pytest.approx(1, abs=0.3)
    between = (x[1, 0] - x[0, -1]).square().mean()
    within = (x[0, -1] - x[0, -2]).square().mean()
    assert float(between / within) == pytest.approx(1, abs=0.3)


def test_paired():
    a, b = [{"w1": 1.0}, {"w1": 2.0}], [{"w1": 2.0}, {"w1": 5.0}]
    assert precision.paired(a, b, "w1") == "+2 ± 1"
    assert precision.paired(a, a, "w1") == "+0 ± 0"
    assert precision.paired([*a, {"error": "diverged"}], [*b, {"w1": 3.0}], "w1") == "+2 ± 1"
    assert precision.paired([{"error": "diverged"}], [{"w1": 3.0}], "w1") == "–"


def test_on_another_device(tmp_path):
    with pytest.raises(ValueError, match=r"on the CPU, .* got 'cuda'"):
        precision.run(tmp_path, TINY, "cuda")
