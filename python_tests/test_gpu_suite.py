"""The parts of the suite for a machine with a GPU, in small on the CPU: they are to work the first
time that there is one."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from benchmarks.gpu import check, profile, timing
from sda_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason=str(_native.reason))


def call(main, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs a part as a program, and returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["part", "--device", "cpu", *arguments])
    try:
        return main() or 0
    except SystemExit as ended:
        return int(ended.code or 0)


def test_operators_agree(monkeypatch, capsys):
    assert call(check.main, monkeypatch) == 0
    assert "operator calls agree with the reference" in capsys.readouterr().out


def test_profile(monkeypatch, tmp_path: Path):
    assert call(profile.main, monkeypatch, "--out", str(tmp_path / "profile.json")) == 0
    first, *_ = json.loads((tmp_path / "profile.json").read_text())
    assert first["count"] > 0


def test_timings_go_on(monkeypatch, tmp_path: Path):
    """A second run with the same file takes what the first had no time for, and a third nothing."""
    out = tmp_path / "timings.json"
    parts = [timing.operators, partial(timing.networks, compiled=False)]
    monkeypatch.setattr(timing, "parts", lambda: parts)
    monkeypatch.setattr(timing, "DTYPES", timing.DTYPES[:1])

    seen: list[set[tuple[str, str]]] = []
    for seconds, status in ((0.0, timing.LEFT_OUT), (0.3, None), (300.0, 0), (300.0, 0)):
        ended = call(timing.main, monkeypatch, "--out", str(out), "--seconds", str(seconds))
        assert status in (None, ended)
        content = json.loads(out.read_text())
        cases = [(case["group"], case["code"]) for case in content["cases"]]
        assert len(cases) == len(set(cases))
        # a small U-Net may be further than that from itself in bfloat16
        assert {case["code"][-8:] for case in content["cases"] if "problem" in case} <= {"bfloat16"}
        assert (ended == timing.LEFT_OUT) == bool(content["left_out"])
        seen.append(set(cases))

    nothing, some, everything, again = seen
    assert not nothing
    assert some < everything == again


def test_a_case_that_cannot_be_made_is_named(tmp_path: Path):
    """And not tried again."""
    run = timing.Run("cpu", float("inf"), tmp_path / "timings.json")

    def make():
        raise MemoryError("too large")

    for _ in range(2):
        timing.codes(run, "large", make, compiled=False)
    (case,) = run.rows
    assert case["problem"] == "MemoryError: too large"
