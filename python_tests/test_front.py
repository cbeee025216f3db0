"""The studies of quality against cost, in small: what they write, and that they can be resumed."""

import json
import math
from dataclasses import replace

import pytest
import torch

from experiments import front as study
from experiments import front_flow, schedule_search, schedules
from experiments.lorenz import cases, correctors, ends, equal_cost
from experiments.lorenz.cases import FILTER
from sda_fast import Recipe
from sda_fast.evaluation import kl_divergence, sampler_law

# so few particles do not follow a truth well
pytestmark = pytest.mark.filterwarnings("ignore:the effective sample size:RuntimeWarning")

RECIPES = [
    ("short", "lorenz63-w9", Recipe("short", "junction", 2, 1, 0.5, clip=5.0)),
    ("published", "lorenz63", Recipe("published", "centre", 2, 1, 0.25)),
]


@pytest.fixture(autouse=True)
def _small(small_cases, monkeypatch):
    monkeypatch.setattr(study, "recipes", lambda: iter(RECIPES))
    monkeypatch.setattr(cases, "LOST", math.inf)  # few steps do not lead to the attractor
    study.second_run.cache_clear()
    yield
    study.second_run.cache_clear()


def test_profiles():
    """No truth that the presets, or the ends of their grids, were chosen by is judged."""
    chosen = {0, 1, *ends.FULL.truths}
    for profile in (study.QUICK, study.FULL):
        assert not chosen & {*profile.truths, *profile.others, *profile.published}


def test_run(tmp_path, monkeypatch):
    profile = study.Profile(truths=(2, 3), others=(2, 3), published=(), members=20)
    records = study.run(tmp_path, profile)
    assert len(records) == 2 * 2 + 2 * 2
    assert all(record["floor"] > 0 for record in records)
    assert [json.loads(line) for line in (tmp_path / "front.jsonl").read_text().splitlines()]

    rows = study.average(records)
    assert [(row["setting"], row["name"]) for row in rows] == [
        ("lo", FILTER),
        ("lo", "short"),
        ("hi", FILTER),
        ("hi", "short"),
    ]
    assert len(study.table(rows).splitlines()) == 2 + 4
    for row in rows:
        exact = row["name"] == FILTER
        assert (row["w1"] == [1.0, 0.0]) is exact
        assert (row["gap"] == [0.0, 0.0]) is exact
        assert row["evaluations"] == (0 if exact else 4)
        assert row["lost"] == 0

    # what is known is not sampled again
    monkeypatch.setattr(study, "evaluate", lambda *_: pytest.fail("sampled again"))
    assert study.run(tmp_path, profile) == records


def test_divergence_is_recorded(tmp_path, monkeypatch):
    def diverge(*_):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(study, "evaluate", diverge)
    profile = study.Profile(truths=(2,), others=(2,), published=(2,), members=20)
    rows = study.average(study.run(tmp_path, profile))
    assert [row["diverged"] for row in rows] == [1] * 6
    assert "| published | 1 | 4 | diverged |" in study.table(rows)


def test_page(tmp_path):
    page = tmp_path / "front.md"
    page.write_text(f"before\n{study.START}\nold\n{study.END}\nafter\n")
    row = {"setting": "lo", "name": "x", "evaluations": 4, "truths": 1, "diverged": 0}
    row |= {"w1": [1.5, None], "seconds": 2.0, "energy": [0.1, None], "log_prior": [80.0, None]}
    row |= {"gap": [-1.0, None], "log_likelihood": [12.0, None], "coverage": [0.9, None]}
    row |= {"exact_coverage": [0.9, None], "lost": 0.0}

    study.write_page(page, [row])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert study.table([row]) in text
    assert (tmp_path / "front.png").stat().st_size > 1000


# Guidance at equal cost


def test_equal_cost(tmp_path):
    assert equal_cost.Cell("lo", 0, 20, equal_cost.GAMMA, 0.03, 256).evaluations == 128
    assert equal_cost.Cell("lo", 0, 20, equal_cost.MMPS, 3, 256).evaluations == 51

    strengths = {equal_cost.GAMMA: (0.03,), equal_cost.SPECTRAL: (0.1,), equal_cost.MMPS: (1,)}
    profile = equal_cost.Profile(truths=1, members=20, passes=(24,), strengths=strengths)
    report = equal_cost.run(tmp_path, profile)
    assert "| lo | Gamma 0.03 | 12 |" in report
    assert "| hi | spectral 0.1 | 12 |" in report
    assert "| hi | MMPS 1 | 8 |" in report


# Where the grid ends


def test_ends(tmp_path, monkeypatch):
    def preset(name: str, last: float) -> Recipe:
        return Recipe(name, "junction", (0.9, 0.3, last), (1, 0), 0.5, True, 5.0)

    monkeypatch.setattr(ends, "preset", preset)
    profile = ends.Profile(("fast",), (("lorenz63-w13", (0.1, 0.003)),), (10,), members=20)
    report = ends.run(tmp_path, profile)
    lines = (tmp_path / "ends.jsonl").read_text().splitlines()
    log_priors = [json.loads(line)["log_prior"] for line in lines]
    assert len(set(log_priors)) == 4
    for setting in ("lo", "hi"):
        for last in (0.1, 0.003):
            assert f"| {setting} | lorenz63-w13 | fast | {last} | " in report


# A search of schedules


def test_candidates_keep_to_the_budget():
    for candidate in schedule_search.draw(100):
        recipe = candidate.recipe(candidate.steps)
        counts, n = recipe.corrections, len(recipe.corrections)
        assert 0.75 * schedule_search.BUDGET < recipe.evaluations <= schedule_search.BUDGET
        assert set(counts) <= {0, candidate.count}
        assert not any(counts[n - candidate.last :])
        allowed = [t < candidate.below for t in recipe.steps[1 : n - candidate.last + 1]]
        assert [c > 0 for c in counts[: n - candidate.last]] == allowed


def test_search_of_schedules(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule_search, "BUDGET", 12)
    text = schedule_search.run(tmp_path, schedule_search.Profile(3))
    log = (tmp_path / "schedules.jsonl").read_text()
    records = [json.loads(line) for line in log.splitlines()]
    least = min(schedule_search.score(r) for r in records)
    assert f"| {schedules.write(least)} |" in text
    assert schedule_search.run(tmp_path, schedule_search.Profile(3)) == text
    assert (tmp_path / "schedules.jsonl").read_text() == log


@pytest.mark.parametrize("value", [math.nan, math.inf, None], ids=str)
def test_unstable_schedules_are_the_worst(tmp_path, monkeypatch, value):
    def kl_divergence(*_):
        return torch.linalg.cholesky(-torch.eye(2))[0, 0] if value is None else value

    monkeypatch.setattr(schedule_search, "BUDGET", 12)
    monkeypatch.setattr(schedule_search, "kl_divergence", kl_divergence)
    text = schedule_search.run(tmp_path, schedule_search.Profile(1))
    record = json.loads((tmp_path / "schedules.jsonl").read_text())
    assert record["error"] == "not stable: lo"
    assert schedule_search.score(record) == math.inf
    assert "| unstable | unstable |" in text


# Kinds of corrector


@pytest.fixture(scope="module")
def problem():
    return schedules.PROBLEMS["lo"]


def test_plain_corrections_are_the_samplers(problem):
    recipe = Recipe("", None, (0.9, 0.6, 0.4, 0.2, 0.1, 0.03), (0, 1, 2, 2, 1), 0.3, denoise=True)
    guided = problem.guided()
    options = {name: value for name, value in recipe.options.items() if name != "clip"}
    law = sampler_law(guided, guided.eps, **options)
    expected = 100 * kl_divergence(law, problem.posterior) / (2 * schedules.LENGTH)
    assert schedules.divergence(problem, recipe) == pytest.approx(expected, rel=1e-8)
    # a momentum of which nothing is kept
    without = schedules.divergence(problem, recipe, schedules.underdamped(0.0))
    assert without == pytest.approx(expected, rel=1e-8)


def test_averaged_noise_is_exact():
    """Its stationary variance is that of the estimate's law, at any size of the step."""
    Lambda = torch.tensor([0.2, 1.0, 1.8]).double().diag()
    v, eye = torch.zeros(3).double(), torch.eye(3).double()
    for correct, exact in ((schedules.averaged, True), (schedules.plain, False)):
        state = schedules.State(3)
        for _ in range(500):
            correct(state, (Lambda, v), 1.0, 0.5, eye)
        variance = (Lambda @ state.S[:3, :3]).diagonal()
        assert bool((variance - 1).abs().max() < 1e-6) is exact


def test_tables_of_correctors(monkeypatch):
    monkeypatch.setattr(schedules, "schedules", lambda: [schedules.even(4, 1, 0.5)])
    text = schedules.by_schedule()
    assert "| even steps, 4 × 1, tau 0.5 | 8 |" in text


def test_correctors(tmp_path, monkeypatch):
    short = Recipe("fast", "junction", (0.9, 0.4, 0.1), (1, 1), 0.3, True, 5.0)
    monkeypatch.setattr(correctors, "preset", lambda name: short)
    profile = replace(correctors.QUICK, truths=1, members=20, factors=(1.0,))
    report = correctors.run(tmp_path, profile)
    assert "| hi | fast | underdamped, c = 0.8 | 1 |" in report
    assert len(report.splitlines()) == 2 + 2 * 6


# The flow


def test_flow(tmp_path, monkeypatch):
    pytest.importorskip("jax_cfd")
    short = {"short": Recipe("", front_flow.RULE, 2, 0, 1.0, clip=5.0)}
    monkeypatch.setattr(front_flow, "recipes", lambda: short)
    monkeypatch.setattr(front_flow, "SIZE", 32)
    profile = front_flow.Profile(truths=(0,), members=2, bfloat16=False)
    assert "| short | 1 | 2 |" in front_flow.run(tmp_path, profile)
