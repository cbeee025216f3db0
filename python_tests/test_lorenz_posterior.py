"""The study of Lorenz-63 posteriors, in small: what it writes, and that it can be resumed."""

import json
import math

import pytest
import torch

from experiments import study
from experiments.lorenz import cases, posterior

TINY = posterior.Profile(
    truths=1,
    members=4,
    steps=2,
    corrections=(0, 1),
    tau=0.25,
    methods=("centre, k = 2", cases.JUNCTION, posterior.GLOBAL),
    iterations=2,
)


@pytest.fixture(autouse=True)
def _small(small_cases):
    """Few particles."""


def test_run(tmp_path, monkeypatch):
    report = posterior.run(tmp_path, TINY)
    log = (tmp_path / "posterior.jsonl").read_text()
    records = [json.loads(line) for line in log.splitlines()]

    # two settings of two other methods, and three priors with and without corrections
    assert len(records) == 2 * (2 + 3 * 2)
    assert (tmp_path / "posterior.md").read_text() == report + "\n"
    assert (tmp_path / "posterior.png").read_bytes()[:4] == b"\x89PNG"
    assert len(report.splitlines()) == 2 + len(records)
    for record in records:
        if record["method"] == cases.FILTER:
            assert math.isfinite(record["w1"])
            assert record["log_prior"] == pytest.approx(82, abs=10)

    # with a lost line only that cell is evaluated again, to the same numbers
    lines = log.splitlines(keepends=True)
    (tmp_path / "posterior.jsonl").write_text("".join(lines[:5] + lines[6:]))
    evaluated, evaluate = [], posterior.evaluate

    def spy(cell, **options):
        evaluated.append(cell)
        return evaluate(cell, **options)

    monkeypatch.setattr(posterior, "evaluate", spy)
    assert posterior.run(tmp_path, TINY) == report
    assert [vars(cell) for cell in evaluated] == [
        {name: records[5][name] for name in posterior.Cell.__dataclass_fields__}
    ]


def test_divergence_is_recorded(tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(cases, "sample", diverge)
    report = posterior.run(tmp_path, TINY)
    assert report.count("1 of 1 diverged") == 2 * 6
    assert report.count("| –") == 2 * 6 * len(posterior.METRICS) + 2  # the floors' own difference


def test_other_errors_are_not_recorded(tmp_path):
    def fail(cell):
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        study.evaluate_all(tmp_path / "log.jsonl", list(posterior.cells(TINY)), fail)
    assert not (tmp_path / "log.jsonl").exists()


def test_lost_members_are_left_out():
    case = cases.make_case(posterior.SETTINGS["lo"], 0, 4)
    x = cases.filtered(case.observation, 2, 0, 8)
    expected = cases.measure(x[:6], case)
    x[6, 10, 2], x[7, 0, 0] = 1e10, torch.nan
    assert cases.measure(x, case) == expected | {"lost": 0.25}
    with pytest.raises(FloatingPointError, match="88% of the members left the attractor"):
        cases.measure(torch.cat((x[:1], x[6:7].expand(7, -1, -1))), case)


def test_case():
    """The low-frequency setting is observed at every 8th state, both in the units of the prior."""
    for setting in posterior.SETTINGS.values():
        case = cases.make_case(setting, 0, 4)
        y = case.observation.y
        assert torch.equal(y.isfinite()[:, 0], torch.arange(65) % setting.every == 0)
        error = (y - case.truth[:, :1] / 8)[:: setting.every]
        assert error.abs().max() < 5 * setting.std
        assert case.reference.shape == (4, 65, 3)
        torch.testing.assert_close(
            cases.total_log_likelihood(case.observation, case.reference),
            case.observation.total_log_likelihood(case.reference),
        )


def test_above_floor():
    """The difference from the floor of the same truth, and its standard error."""
    methods, truths = (cases.FILTER, "x", "y"), (0, 1, 2)
    records = [
        {"method": name, "truth": truth, "w1": 10 * truth + excess * (1 + truth)}
        for name, excess in zip(methods, (0, 1, -2), strict=True)
        for truth in truths
    ]
    records[-1] = {"method": "y", "truth": 2, "error": "diverged"}
    rows = study.average(cases.above_floor(records, ("truth",)), ("method",), ("w1", "above"))
    assert [row["above"] for row in rows] == [None, 2.0, -3.0]
    errors = [row["above error"] for row in rows]
    assert errors == [None, pytest.approx(1 / math.sqrt(3)), pytest.approx(1.0)]
    assert study.scores(rows[1], ("w1", "above")) == ["12.0", "2.00 ± 0.58"]
    assert study.scores(rows[0], ("above",)) == ["–"]


def test_numbers():
    assert [study.number(x) for x in (None, 0.123, -9.99, 12.34, 123456.0)] == [
        "–", "0.12", "-9.99", "12.3", "1.23e+05"
    ]  # fmt: skip
    assert study.table(["a", "b"], [(1, 2)]) == "| a | b |\n|---|---|\n| 1 | 2 |"
