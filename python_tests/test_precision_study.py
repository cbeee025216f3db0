"""The study of precisions, in small."""

import pytest

from experiments import precision
from sda_fast import _native

TINY = precision.Profile(trajectories=2, truths=1, members=8)


@pytest.fixture(autouse=True)
def _small(small_cases):
    """Few particles."""


def test_run(tmp_path):
    report = precision.run(tmp_path, TINY)
    assert (tmp_path / "precision.md").read_text() == report + "\n"
    estimates, posteriors = (part.splitlines()[2:] for part in report.split("\n\n"))
    assert len(posteriors) == 2 * len(precision.METRICS)

    for line in estimates:
        assert float(line.split(" | ")[-1].rstrip(" |")) < 1.1  # no estimate is 1 away
        high, low, high_gradient, low_gradient = map(float, line.split(" | ")[2:6])
        assert high < 1e-5
        assert high_gradient < 1e-5
        if _native.has_bfloat16():
            assert 1e-4 < low < 0.2
            assert 1e-4 < low_gradient < 2e-2


def test_paired():
    a, b = [{"w1": 1.0}, {"w1": 2.0}], [{"w1": 2.0}, {"w1": 5.0}]
    assert precision.paired(a, b, "w1") == "+2 ± 1"
    assert precision.paired(a, a, "w1") == "+0 ± 0"
    assert precision.paired([*a, {"error": "diverged"}], [*b, {"w1": 3.0}], "w1") == "+2 ± 1"
    assert precision.paired([{"error": "diverged"}], [{"w1": 3.0}], "w1") == "–"


def test_on_another_device(tmp_path):
    with pytest.raises(ValueError, match=r"on the CPU, .* got 'cuda'"):
        precision.run(tmp_path, TINY, "cuda")
