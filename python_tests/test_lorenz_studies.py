"""The studies of Lorenz-63, in small: what they count, and what they write."""

import math
from dataclasses import replace

import pytest
import torch

from experiments.lorenz import cases, guidance, modes, trajectory_network, weights, zero_shot
from sda_fast import Recipe

# 512 particles are few
pytestmark = pytest.mark.filterwarnings("ignore:the effective sample size:RuntimeWarning")


@pytest.fixture(autouse=True)
def _small(small_cases):
    """Few particles."""


def wrote(folder, name: str, report: str) -> bool:
    image = (folder / f"{name}.png").read_bytes()
    return (folder / f"{name}.md").read_text() == report + "\n" and image[:4] == b"\x89PNG"


# Modes


def test_pattern():
    x = torch.ones(2, 65, 3)
    x[1, 32:, 0] = -1
    assert modes.pattern(x) == ["+++++++++", "++++-----"]


@pytest.mark.parametrize("setting", ["|a|", "c, every 4th"])
def test_mirror_images_are_as_likely(setting: str):
    truth, observation = modes.make_case(setting, 0)
    x = torch.stack((truth, truth * torch.tensor([-1.0, -1.0, 1.0])))
    one, other = cases.total_log_likelihood(observation, x).tolist()
    assert one == pytest.approx(other, rel=1e-5)


def test_hint():
    """One reading of a, at state 32."""
    _, observation = modes.make_case("c, a once", 0)
    seen = observation.y.isfinite()
    assert seen[:, 0].nonzero().flatten().tolist() == list(range(0, 65, 8))
    assert seen[:, 1].nonzero().flatten().tolist() == [32]


def test_forecast():
    """Nothing is seen after state 24."""
    _, observation = modes.make_case("a until 24", 3)
    assert observation.y.isfinite()[:, 0].nonzero().flatten().tolist() == [0, 8, 16, 24]


def test_weights_of_modes():
    """Two runs of the filter and 100 samples, counted by hand."""
    base = {"setting": "c", "truth": 0, "lost": 0.0, "of_truth": "+++++++++"}
    base |= {"shown": [[0.0] * 65], "truth_a": [0.0] * 65}
    up, down, other = "+++++++++", "---------", "++++-----"
    records = [
        base | {"method": cases.FILTER, "run": 0, "counts": {up: 40, down: 60}},
        base | {"method": cases.FILTER, "run": 1, "counts": {up: 60, down: 40}},
        base | {"method": cases.JUNCTION, "run": 0, "counts": {up: 80, other: 20}},
    ]
    records[2] |= {"recipe": "fast", "log_priors": {up: 80.0, other: -20.0}}
    (s,) = weights.summarise(records, at=4)
    p, q = (dict(zip(s["modes"], s[name], strict=True)) for name in ("p", "q"))
    assert s["sampler"] == "junction, w = 9, fast"
    assert s["log_prior"] == [80.0, -20.0]
    assert p == pytest.approx({up: 0.5, down: 0.5, other: 0.0})
    assert q == pytest.approx({up: 0.8, down: 0.0, other: 0.2})
    assert s["errors"][0] == pytest.approx(0.1)
    assert s["tv"] == pytest.approx(0.5)
    assert s["known_tv"] == pytest.approx(0.5)  # all 80 in one of two modes
    assert (s["missed"], s["invented"]) == pytest.approx((0.5, 0.2))
    assert s["positive"] == pytest.approx((0.5, 0.8))
    # the median of |share - 1/2| of n draws is near 0.34 / sqrt(n)
    assert 0.02 < s["floor"] < s["known_floor"] < 0.06


def test_weights_of_members_in_no_mode():
    assert weights.floor(torch.tensor([0.5, 0.5]), 0) is None


def test_modes(tmp_path, monkeypatch):
    few = {"2 steps": Recipe("", None, 2, 1, 0.5)}
    few["24 steps"] = Recipe("", None, 24, 1, 0.5, clip=5.0)
    monkeypatch.setattr(cases, "RECIPES", few)
    posteriors = tuple((setting, 8) for setting in modes.SETTINGS)
    profile = modes.Profile(
        posteriors=posteriors,
        runs=2,
        members=4,
        samplers=((cases.JUNCTION, "2 steps"),),
        iterations=2,
        truths=(0,),
    )
    diverged = modes.run(tmp_path / "diverged", profile)  # two steps do not lead to the attractor
    assert diverged.count("| diverged") == 9 * len(posteriors)

    monkeypatch.setattr(cases, "LOST", math.inf)  # nor do 24, by an untrained network
    ours = ((cases.JUNCTION, "24 steps"), (trajectory_network.GLOBAL, "24 steps"))
    profile = replace(profile, posteriors=posteriors[:2], samplers=ours)
    report = modes.run(tmp_path, profile)
    assert wrote(tmp_path, "modes", report)
    for setting, truth in profile.posteriors:
        name = setting.replace("|", r"\|")
        for method, _ in ours:
            assert f"| `{name}`, truth {truth} | {method}, 24 steps |" in report
    assert "diverged" not in report
    assert [f"| {name} | 1 |" in report for name in modes.LENGTHS] == [True] * 4
    assert modes.run(tmp_path, profile) == report


# Zero-shot


@pytest.mark.parametrize("name", zero_shot.INSTRUMENTS)
def test_instrument(name: str):
    """Filter and guidance are told the same of a trajectory."""
    instrument = zero_shot.INSTRUMENTS[name]
    case = cases.make_case(instrument, 0, 4)
    x = case.reference
    predicted = instrument.trajectory(cases.chain.preprocess(x))
    assert predicted.shape[1:] == instrument.readings(case.observation).shape
    assert instrument.readings(case.observation).isfinite().all()

    residual = (predicted - instrument.readings(case.observation)) / instrument.std
    log = -(residual.double().square() + 2 * torch.tensor(instrument.std).log()) / 2
    log -= torch.log(torch.tensor(2 * torch.pi)) / 2
    torch.testing.assert_close(
        log.flatten(1).sum(dim=1),
        cases.total_log_likelihood(case.observation, x),
        rtol=1e-3,
        atol=1e-3,
    )
    guided = cases.guide(case, instrument, cases.load())
    noise = guided(torch.randn(2, 65, 3), torch.tensor(0.5))
    assert noise.isfinite().all()


def test_zero_shot(tmp_path, monkeypatch):
    few = dict(list(zero_shot.INSTRUMENTS.items())[::4])
    monkeypatch.setattr(zero_shot, "INSTRUMENTS", few)
    monkeypatch.setattr(cases, "RECIPES", {"2 steps": Recipe("", None, 2, 1, 0.5, clip=5.0)})
    profile = replace(zero_shot.QUICK, members=4, recipe="2 steps")
    report = zero_shot.run(tmp_path, profile)
    assert wrote(tmp_path, "zero_shot", report)
    assert len(report.splitlines()) == 2 + 3 * len(few)


# Guidance


def test_guidance(tmp_path, monkeypatch):
    monkeypatch.setattr(guidance, "TRAJECTORIES", 64)
    monkeypatch.setattr(cases, "LOST", math.inf)  # two steps do not lead to the attractor
    strengths = {guidance.GAMMA: (1e-2,), guidance.SPECTRAL: (1e-2,)}
    strengths |= {guidance.MMPS: (1,), guidance.DPS: (1.0, 1e30)}
    profile = replace(guidance.QUICK, members=4, steps=2, corrections=1, strengths=strengths)
    report = guidance.run(tmp_path, profile)
    assert wrote(tmp_path, "guidance", report)
    rows = report.splitlines()[2:]
    assert len(rows) == 1 + 2 * (5 + 3)
    lost = [row for row in rows if "diverged" in row]
    # with and without corrections; where what is denoised is bounded nothing is lost
    assert [row.split(" | ")[:4] for row in lost] == [
        ["| DPS", "1", "", "1e+30"],
        ["| DPS", "0", "", "1e+30"],
    ]
