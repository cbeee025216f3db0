"""The study of Kolmogorov flow, in small: its cases, their scores, and what is written."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sda_fast import load_prior
from sda_fast.data import Recipe, generate
from sda_fast.io import build_network, read_record, save_prior

pytest.importorskip("matplotlib")
pytest.importorskip("jax_cfd")

from PIL import Image  # matplotlib brings it

from experiments.kolmogorov import assimilation, prior, release, report, sampling, schedules
from experiments.kolmogorov.__main__ import summary
from experiments.kolmogorov.cases import CASES
from experiments.kolmogorov.metrics import NUMBERS, measure
from experiments.kolmogorov.scene import Scene, make_scene
from experiments.kolmogorov.simulator import Simulator

N = 16


def trajectory(length: int = 5) -> Tensor:
    return torch.randn(length, 2, N, N, generator=Generator().manual_seed(0))


def scene(name: str, length: int = 5) -> Scene:
    return make_scene(CASES[name], trajectory(length), seed=0)


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(N, 2 * N)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> sampling.Settings:
    """Two steps with an untrained network."""
    torch.manual_seed(0)
    config = {
        "features": 2,
        "order": 1,
        "length_aware": True,
        "spatial": 2,
        "hidden_channels": [4],
        "hidden_blocks": [1],
        "kernel_size": 3,
        "embedding": 4,
        "padding_mode": "circular",
        "velocity": {"alpha": "cos", "eta": 1e-3},
    }
    record = {
        "network": config,
        "schedule": {"class": "VPSDE", "alpha": "cos", "eta": 1e-3},
        "shape": [8, 2, N, N],
        "mean": [0.0, 0.0],
        "std": [0.3, 0.3],
        "training": {"iteration": 0},
        "system": "kolmogorov",
    }
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    save_prior(path, build_network(config), record)
    return sampling.Settings(prior=str(path), steps=2, overlap=1, size=2 * N)


@pytest.mark.parametrize("name", CASES)
def test_observation(name: str):
    """Noise of the stated size, where something is observed; and something to draw."""
    case, length = CASES[name], CASES[name].length
    truth = trajectory(length)
    observed = make_scene(case, truth, seed=0)
    seen = ~observed.y.isnan()
    noise = (observed.y - observed.A(truth[None])[0])[seen]
    count = int(seen.sum())
    assert noise.square().mean().sqrt() == pytest.approx(case.std, rel=3 / math.sqrt(2 * count))
    assert float(observed.misfit(truth[None]).min()) == pytest.approx(1, abs=0.2)

    drawn = case.picture(observed.y)
    assert len(drawn) == length
    assert drawn.ndim == 3 or drawn.shape == (length, 2, 8, 8)
    assert bool(drawn.isfinite().any())


def test_what_is_seen():
    assert scene("sparse").y.shape == (5, 2, 8, 8)
    assert torch.equal(scene("gap").y.isnan()[0, 0].sum(dim=0) > 0, torch.arange(N) // 4 % 3 > 0)
    states = torch.arange(25)
    for name, seen in (("interpolation", states % 8 == 0), ("forecast", states < 5)):
        observed = ~scene(name, 25).y.isnan()
        assert torch.equal(observed.flatten(1).all(dim=1), seen)
        assert torch.equal(observed.flatten(1).any(dim=1), seen)


def test_ambiguity():
    """Shifts of a trajectory by a quarter of the square explain the observation as well, other
    shifts do not; their likelihoods add up."""
    ambiguous = scene("ambiguous")
    truth, likelihood = ambiguous.truth, ambiguous.likelihood
    shifted = torch.stack([truth.roll(-s * N // 4, dims=-1) for s in range(4)])
    torch.testing.assert_close(likelihood(shifted), likelihood(shifted[:1]).expand(4))
    assert ambiguous.modes(shifted).tolist() == [0, 1, 2, 3]
    assert float(likelihood(truth[None].roll(1, dims=-1))) < float(likelihood(truth[None])) - 1000

    x, v = shifted[1:2] + 0.5, 0.3
    residuals = [ambiguous.y - ambiguous.A(x.roll(s * N // 4, dims=-1)) for s in range(4)]
    terms = torch.stack([-r.double().square().sum() / 2 / (0.01 + v) for r in residuals])
    assert float(likelihood(x, v)) == pytest.approx(float(terms.exp().sum().log()), rel=1e-6)


def test_measure(simulator: Simulator):
    """Known errors of a made-up ensemble: exact numbers, and of shifts none."""
    sparse = scene("sparse")
    x = sparse.truth + torch.tensor([-0.1, 0.3])[:, None, None, None, None]
    numbers = measure(sparse, x, simulator)
    assert numbers["rmse"] == pytest.approx(0.1, rel=1e-4)
    assert numbers["spread"] == pytest.approx(0.4 / math.sqrt(2), rel=1e-4)
    assert numbers["crps"] == pytest.approx(
        0.2 - 0.2, abs=1e-4
    )  # fair: |x| over members less pairs
    assert numbers["climatology"] == pytest.approx(1, abs=0.05)
    assert numbers["misfit"] > numbers["misfit of the truth"]
    assert not {"unseen", "modes", "second"} & set(numbers)

    gap = scene("gap")
    far = gap.truth + gap.y.isnan()
    numbers = measure(gap, torch.stack((far, far)), simulator)
    assert numbers["unseen"] == pytest.approx(1)
    assert numbers["rmse"] == pytest.approx(0.5)
    assert numbers["spread"] == 0

    long = scene("long", 6)  # of which states 0 and 5 are observed
    far = long.truth.clone()
    far[1:5] += 1
    assert measure(long, torch.stack((far, far)), simulator)["unseen"] == pytest.approx(1)

    ambiguous = scene("ambiguous")
    x = torch.stack([ambiguous.truth.roll(-s * N // 4, dims=-1) for s in (2, 0, 3)])
    numbers = measure(ambiguous, x, simulator)
    assert numbers["modes"] == [2, 0, 3]
    assert numbers["rmse"] == pytest.approx(0, abs=1e-6)
    assert numbers["spread"] == pytest.approx(0, abs=1e-6)
    assert numbers["second"] > 5 * numbers["misfit"]


def test_simulator(simulator: Simulator):
    """A simulated truth moves as the simulator says, but for what the coarse grid does not show."""
    truth = simulator.truth(4, seed=0)
    assert truth.shape == (4, 2, N, N)
    change = float((truth[1:] - truth[:-1]).square().mean().sqrt())
    assert simulator.inconsistency(truth) < 0.5 * change
    assert simulator.inconsistency(truth.flip(0)) > change
    with pytest.raises(ValueError, match="a multiple of the 16 points seen, but is 40"):
        Simulator(N, 40)


@pytest.mark.parametrize("name", ["sparse", "ambiguous"])
def test_case(tmp_path: Path, settings: sampling.Settings, name: str):
    result = assimilation.assimilate(name, tmp_path, settings, members=2, progress=False)
    assert json.loads((tmp_path / f"{name}.json").read_text()) == result
    assert result["members"] == 2
    assert math.isfinite(result["rmse"])
    assert summary(result).count("\n") >= 8

    arrays = np.load(tmp_path / f"{name}.npz")
    assert arrays["posterior"].shape == (2, *arrays["truth"].shape)
    with Image.open(tmp_path / f"{name}.gif") as animation:
        assert animation.n_frames == CASES[name].length
    with Image.open(tmp_path / f"{name}.png") as figure:
        assert min(figure.size) > 300


def test_truths(tmp_path: Path, settings: sampling.Settings):
    """Numbers are means over truths, a run that is repeated adds to what is there, and one of other
    settings begins anew."""

    def run(truths: int, **change: float) -> dict:
        return assimilation.assimilate(
            "ambiguous",
            tmp_path,
            dataclasses.replace(settings, **change),
            members=2,
            truths=truths,
            progress=False,
        )

    first = run(1)
    picture = (tmp_path / "ambiguous.png").read_bytes()
    both = run(2)
    assert json.loads((tmp_path / "ambiguous.json").read_text()) == both
    assert both["each"][0] == first["each"][0]
    assert both["each"][1]["rmse"] != first["rmse"]
    assert both["rmse"] == pytest.approx(sum(each["rmse"] for each in both["each"]) / 2)
    assert (tmp_path / "ambiguous.png").read_bytes() == picture
    assert run(2) == both
    assert run(1, tau=0.5)["truths"] == 1


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_schedule(end: float):
    """Even steps to the end, no correction last, and denoising unless the end is 0."""
    schedule = sampling.Settings(steps=4, corrections=2, end=end).schedule
    assert schedule["steps"].tolist() == pytest.approx([1 - n * (1 - end) / 4 for n in range(5)])
    assert schedule["corrections"] == [2, 2, 2, 0]
    assert schedule["denoise"] == (end > 0)
    with pytest.raises(ValueError, match="end must be at least 0 and below 1, but is 1"):
        _ = sampling.Settings(end=1).schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(
        "kolmogorov", {"size": 2 * N}, length=10, burn_in=4, trajectories=40, block=40, coarsen=2
    )
    path = tmp_path_factory.mktemp("data") / "data.h5"
    return generate(recipe, path, progress=False, report=lambda _: None)


def test_judgement(tmp_path: Path, data: Path, settings: sampling.Settings):
    """Simulations are judged to be near simulations, and white noise to be far from them."""
    numbers = prior.judge(data, tmp_path, settings, 2, 5, progress=False)
    for name, floor in numbers["held-out"].items():
        if name not in ("enstrophy", "divergence"):
            assert floor < numbers["samples"][name], name
    assert (tmp_path / "prior.png").is_file()
    assert (tmp_path / "prior-statistics.png").is_file()
    assert json.loads((tmp_path / "prior.json").read_text())["numbers"] == numbers


def test_schedules(data: Path, settings: sampling.Settings, monkeypatch: pytest.MonkeyPatch):
    """What is noised by nothing comes back as it was; white noise is far from simulations."""
    monkeypatch.setattr(schedules, "SAMPLES", 2)
    monkeypatch.setattr(schedules, "Simulator", lambda seen: Simulator(seen, 2 * N))
    back = schedules.Cell(2, 0, begin=1e-4, end=0.0, bfloat16=False, back=True)
    near = schedules.evaluate(back, data, settings.prior)
    far = schedules.evaluate(dataclasses.replace(back, begin=1.0, back=False), data, settings.prior)
    assert near["spectrum"] < 0.1 < far["spectrum"]
    assert near["energy"] == pytest.approx(1, abs=0.01)
    assert near["evaluations"] == 2


def test_release(tmp_path: Path, data: Path, settings: sampling.Settings):
    """The record says what data a prior was trained on, and how its error fell until then."""
    path = tmp_path / "tiny.best.safetensors"
    path.write_bytes(Path(settings.prior).read_bytes())
    (tmp_path / "tiny.metrics.csv").write_text(
        "iteration,seconds,loss,valid,valid at 0.1\n-5,1.0,2.0,3.0,4.0\n5,1.0,1.0,2.0,3.0\n"
    )
    release.release(path, data, tmp_path / "out.safetensors")
    record = read_record(tmp_path / "out.safetensors")
    assert record["data"]["seed"] == 0
    assert record["data"]["trajectories"] == 40
    assert record["training"]["data"] == "data.h5"
    assert record["curve"] == [{"iteration": -5, "loss": 2.0, "valid": 3.0}]

    x = torch.randn(1, 5, 2, N, N)
    t = torch.tensor(0.5)
    expected = load_prior(path, length=5).eps(x, t)
    torch.testing.assert_close(
        load_prior(tmp_path / "out.safetensors", length=5).eps(x, t), expected, rtol=0, atol=1e-2
    )


def test_report(tmp_path: Path):
    """The page has a row for each case, and every picture it shows is there."""
    result = {name: 0.5 for name in NUMBERS if name not in ("modes", "second", "unseen")}
    result |= {"observed": 7, "seconds": 1.0, "steps": 32, "corrections": 1, "tau": 1.0}
    result |= {"gamma": 0.01, "iteration": 9000, "members": 3, "truths": 2, "end": 0.01}
    for name in (*CASES, "prior"):
        for suffix in ("png", "gif"):
            (tmp_path / f"{name}.{suffix}").write_bytes(name.encode())
        length = {"length": CASES[name].length} if name in CASES else {}
        (tmp_path / f"{name}.json").write_text(json.dumps(result | length))
    (tmp_path / "prior-statistics.png").touch()
    (tmp_path / "schedules.md").write_text("| even | 1.5 |\n")
    shifts = {"modes": [3, 0, 3], "second": 9.25}
    (tmp_path / "ambiguous.json").write_text(
        json.dumps(result | {"length": 8, "each": [shifts | {"misfit": 0.5}]})
    )
    numbers = {"samples": {"spectrum": 1.25}, "held-out": {"spectrum": 0.75}}
    judged = {"numbers": numbers, "samples": 6, "length": 14, "steps": 64, "corrections": 3}
    (tmp_path / "prior.json").write_text(json.dumps(judged))

    report.write(tmp_path, tmp_path / "docs")
    page = (tmp_path / "docs" / "kolmogorov.md").read_text()
    for name in CASES:
        assert f"| {name} | {CASES[name].length} | 2, 3 | 7 | 0.01 | 0.500 |" in page
    assert "| spectrum | 1.250 | 0.750 |" in page
    assert "| even | 1.5 |" in page
    assert "The 3 members fall 1, 0, 0 and 2 times on shifts 0 to 3." in page
    links = re.findall(r"\]\((kolmogorov/.*?)\)", page)
    assert len(links) == 2 * len(CASES) + 2
    for link in links:
        assert (tmp_path / "docs" / link).is_file()
