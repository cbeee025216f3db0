"""The study of quality against cost, in small: what it writes, and that it can be resumed."""

import json

import pytest

from experiments import front as study
from experiments.lorenz import cases
from sda_fast import Recipe

# so few particles do not follow a truth well
pytestmark = pytest.mark.filterwarnings("ignore:the effective sample size:RuntimeWarning")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(cases, "PARTICLES", 256)
    monkeypatch.setattr(cases, "SPIN_UP", 20)
    recipes = [
        ("short", "lorenz63-w9", Recipe("short", "junction", 2, 1, 0.5, clip=5.0)),
        ("published", "lorenz63", Recipe("published", "centre", 2, 1, 0.25)),
    ]
    monkeypatch.setattr(study, "ingredients", lambda: iter(recipes))
    for cached in (cases.attractor, cases.make_case):
        cached.cache_clear()
    yield
    for cached in (cases.attractor, cases.make_case):
        cached.cache_clear()


def test_run(tmp_path, monkeypatch):
    profile = study.Profile(truths=2, members=4, published=False)
    records = study.run(tmp_path, profile)
    assert len(records) == 2 * 2
    assert all(record["evaluations"] == 4 and record["floor"] > 0 for record in records)
    assert [json.loads(line) for line in (tmp_path / "front.jsonl").read_text().splitlines()]

    rows = study.average(records)
    assert [row["setting"] for row in rows] == ["lo", "hi"]
    assert len(study.table(rows).splitlines()) == 4
    for row in rows:
        assert row["error"] > 0
        assert row["lost"] == 0

    # what is known is not sampled again
    monkeypatch.setattr(study, "evaluate", lambda *_: pytest.fail("sampled again"))
    assert study.run(tmp_path, profile) == records


def test_divergence_is_recorded(tmp_path, monkeypatch):
    def diverge(*_):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(study, "evaluate", diverge)
    rows = study.average(study.run(tmp_path, study.Profile(1, 4, published=True)))
    assert [row["diverged"] for row in rows] == [1] * 4
    assert "| published | 1 | 4 | diverged |" in study.table(rows)


def test_page(tmp_path):
    page = tmp_path / "front.md"
    page.write_text(f"before\n{study.START}\nold\n{study.END}\nafter\n")
    row = {"setting": "lo", "name": "x", "evaluations": 4, "truths": 1, "diverged": 0}
    row |= {"w1": 1.5, "error": None, "seconds": 2.0, "energy": 0.1, "log_prior": 80.0}
    row |= {"log_likelihood": 12.0, "coverage": 0.9, "lost": 0.0}

    study.write_page(page, [row])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert study.table([row]) in text
    assert (tmp_path / "front.png").stat().st_size > 1000
