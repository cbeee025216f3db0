"""The study of what composing windows costs, in small."""

import math
from dataclasses import replace

import pytest

from experiments import composition
from experiments import pseudo_blanket as study
from experiments.pseudo_blanket import CENTRE, EXACT, JUNCTION, Cell
from sda_fast import Junction

CELL = Cell("windows", length=9, rule=EXACT, order=0, time=5.0, steps=32, C=0, tau=0.25)


def test_one_window_is_exact():
    """With windows of the whole trajectory both rules are the exact score."""
    exact = study.evaluate(CELL)["kl"]
    for rule in (CENTRE, JUNCTION):
        assert study.evaluate(replace(CELL, rule=rule, order=4))["kl"] == pytest.approx(exact)
        assert study.evaluate(replace(CELL, rule=rule, order=1))["kl"] > exact


def test_exact_score_converges():
    few, many = (study.evaluate(replace(CELL, steps=n)) for n in (32, 256))
    assert 0 < many["kl"] < few["kl"] / 4
    assert many["spread"] == pytest.approx(1, abs=0.01)


def test_posterior():
    """Observations narrow the law of the samples with the truth's."""
    free = study.evaluate(replace(CELL, C=1))
    observed = study.evaluate(replace(CELL, C=1, steps=256, observed=True))
    assert free["spread"] == pytest.approx(1, abs=0.1)
    assert observed["spread"] == pytest.approx(1, abs=0.2)


def test_run(tmp_path):
    profile = study.Profile(
        length=9,
        orders=(1, 4),
        times=(2.0, 20.0),
        steps=(16,),
        corrections=(0, 1),
        taus=(0.25,),
        middle=(20.0, 2, 16, 1, 0.25),
    )
    report = study.run(tmp_path, profile)
    assert (tmp_path / "pseudo_blanket.md").read_text() == report + "\n"
    assert (tmp_path / "pseudo_blanket.png").stat().st_size > 0
    # a window of the whole trajectory adds nothing
    assert "above" not in report
    assert study.run(tmp_path, profile) == report


def test_composition():
    """The table of docs/composition.md, whose exact row reads every state once."""
    states, values = composition.divergences(None, 0.9, 9, 5, 16, 0.25)
    assert states == 9
    time = -1 / math.log(0.9)
    cells = (replace(CELL, time=time, steps=16, C=c) for c in (0, 1, 4))
    assert values == pytest.approx([study.evaluate(cell)["kl"] for cell in cells])
    assert composition.divergences(Junction(5, 2), 0.9, 9, 5, 16, 0.25)[0] == 3 * 5 + 2 * 3
