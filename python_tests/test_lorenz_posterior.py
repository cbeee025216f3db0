"""The study of Lorenz-63 posteriors, in small: what it writes, and that it can be resumed."""

import json
import math

import pytest
import torch

from experiments.lorenz import posterior as study

TINY = study.Profile(truths=1, members=4, steps=2, corrections=(0, 1), taus=(0.25, 0.5))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(study, "PARTICLES", 512)
    monkeypatch.setattr(study, "SPIN_UP", 50)
    for cached in (study.attractor, study.make_case):
        cached.cache_clear()
    yield
    for cached in (study.attractor, study.make_case):
        cached.cache_clear()


def test_run(tmp_path, monkeypatch):
    report = study.run(tmp_path, TINY)
    log = (tmp_path / "posterior.jsonl").read_text()
    records = [json.loads(line) for line in log.splitlines()]

    # two settings of two other methods, and three priors with C = 0 and, at two amplitudes, C = 1
    assert len(records) == 2 * (2 + 3 * 3)
    assert (tmp_path / "posterior.md").read_text() == report + "\n"
    assert len(report.splitlines()) == 2 + len(records)
    rows = json.loads((tmp_path / "posterior.json").read_text())["rows"]
    assert {row["C"] for row in rows} == {0, 1}
    for row in rows:
        if row["method"] == study.FILTER:
            assert math.isfinite(row["w1"])
            assert row["log_prior"] == pytest.approx(82, abs=10)

    # with a lost line only that cell is evaluated again, to the same numbers
    lines = log.splitlines(keepends=True)
    (tmp_path / "posterior.jsonl").write_text("".join(lines[:5] + lines[6:]))
    evaluated, evaluate = [], study.evaluate

    def spy(cell, device):
        evaluated.append(cell)
        return evaluate(cell, device)

    monkeypatch.setattr(study, "evaluate", spy)
    assert study.run(tmp_path, TINY) == report
    assert [study.key(vars(cell)) for cell in evaluated] == [study.key(records[5])]


def test_divergence_is_recorded(tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(study, "sample", diverge)
    report = study.run(tmp_path, TINY)
    assert report.count("1 of 1 diverged") == 2 * 9
    assert report.count("| diverged") == 2 * 9 * len(study.METRICS)


def test_lost_members_are_left_out():
    case = study.make_case("lo", 0, 4)
    x = study.filtered(case.observation, 2, 0, 8)
    expected = study.measure(x[:6], case)
    x[6, 10, 2], x[7, 0, 0] = 1e10, torch.nan
    assert study.measure(x, case) == expected | {"lost": 0.25}
    with pytest.raises(FloatingPointError, match="88% of the members left the attractor"):
        study.measure(torch.cat((x[:1], x[6:7].expand(7, -1, -1))), case)


def test_case():
    """The low-frequency setting is observed at every 8th state, both in the units of the prior."""
    for setting, (every, std) in study.SETTINGS.items():
        case = study.make_case(setting, 0, 4)
        y = case.observation.y
        assert torch.equal(y.isfinite()[:, 0], torch.arange(65) % every == 0)
        error = (y - case.truth[:, :1] / 8)[::every]
        assert error.abs().max() < 5 * std
        assert case.reference.shape == (4, 65, 3)
