"""Training on data sets, of fields by a U-Net, and on every system."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from training_data import write_fields

from sda_fast import (
    VPSDE,
    ForcedScoreUNet,
    GaussianScore,
    Standardisation,
    load_prior,
    sample,
)
from sda_fast.cli import main
from sda_fast.data import Recipe, Trajectories, Windows, generate
from sda_fast.io import read_record
from sda_fast.kernels import kolmogorov_forcing
from sda_fast.systems import CATALOGUE
from sda_fast.training import Config, draw_samples, loop, train
from sda_fast.training.source import Simulated, Stored

h5py = pytest.importorskip("h5py")
pytest.importorskip("jax_cfd")


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fields(tmp_path_factory.mktemp("data") / "fields.h5")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "vectors.h5"
    recipe = Recipe("lorenz96", {"n": 6}, trajectories=10, length=8, burn_in=9)
    return generate(recipe, path, progress=False, report=lambda _: None)


def unet(data: Path, **options: Any) -> Config:
    defaults = {
        "order": 1,
        "embedding": 8,
        "hidden_channels": (8, 12),
        "hidden_blocks": (1, 1),
        "iterations": 6,
        "batch_size": 4,
        "validation": 8,
        "learning_rate": 3e-3,
        "ema": 0.9,
    }
    return Config(data=str(data), **{**defaults, **options})


def mlp(data: Path, **options: Any) -> Config:
    size = {"order": 1, "width": 8, "depth": 1, "embedding": 4, "validation": 16}
    return Config(data=str(data), **{**size, "iterations": 9, "batch_size": 4, **options})


def weights(config: Config, out: Path, **options: Any) -> dict[str, Tensor]:
    train(config, out, progress=False, **options)
    return load_prior(out, length=9).eps.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


# What is learnt


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_a_unet_learns(fields: Path, tmp_path: Path, prediction: str):
    size = {"batch_size": 16, "hidden_channels": (16, 24)}
    config = unet(fields, iterations=120, prediction=prediction, **size)
    record = train(config, tmp_path / "prior", progress=False)
    (errors,) = record["validation"]["denoising_error"].values()
    assert max(errors) < 1.05
    assert sum(errors) / len(errors) < 0.7
    assert max(errors[4:]) < 0.25
    if prediction == "velocity":  # where there is nothing but noise, it is known
        prior = load_prior(tmp_path / "prior", length=5)
        x = torch.randn(8, 5, 2, 8, 8)
        assert (prior.eps(x, torch.tensor(1.0)) - x).square().mean() < 1e-4


@pytest.mark.parametrize("aware", [False, True])
def test_a_prior_of_fields(fields: Path, tmp_path: Path, aware: bool):
    """It needs no context of its user, and knows how states are standardised."""
    out = tmp_path / "prior"
    aware_options = {"composition": "junction", "prediction": "velocity", "length_aware": True}
    options = aware_options if aware else {}
    record = train(unet(fields, **options), out, progress=False)
    sde = load_prior(out, length=7)

    assert sde.shape == (7, 2, 8, 8)
    kernel = sde.eps.kernel.score if aware else sde.eps.kernel
    assert isinstance(kernel, ForcedScoreUNet)
    assert torch.equal(kernel.forcing, kolmogorov_forcing(8))
    assert sde.eps.plan(7).lengths == ([2, 3] if aware else [3])
    assert sample(sde, (2,), steps=2).shape == (2, 7, 2, 8, 8)
    guided = GaussianScore(torch.zeros(7, 2, 4, 4), lambda x: x[..., ::2, ::2], 0.1, sde)
    x = sample(VPSDE(guided, sde.shape), (2,), steps=4)
    assert bool(torch.isfinite(x).all())
    assert read_record(out)["training"]["system"] == "kolmogorov"
    assert record["validation"]["denoising_error"].keys() == ({1, 2, 3} if aware else {3})

    data = Trajectories(fields)
    scale = Standardisation.load(out)
    assert torch.equal(scale.mean, data.mean)
    x = data[0, :3]
    torch.testing.assert_close(scale.preprocess(x), data.preprocess(x))
    torch.testing.assert_close(scale.postprocess(scale.preprocess(x)), x)


def test_windows_that_are_learnt_from(vectors: Path):
    """Those of the training split in the order of their indices; the validation's are its own."""
    config = mlp(vectors, length_aware=True, lengths=(1, 2), iterations=5)
    source = Stored(config)
    generator = Generator().manual_seed(0)
    windows = Windows(vectors, (1, 2), size=20)

    batches = list(source.batches(2, slice(1, 3), generator))
    assert len(batches) == 3
    for k, (x, eps, length) in enumerate(batches):
        n = 4 * (2 + k)
        assert x.shape == (2, 3, 6)
        assert eps.shape == (4, 3, 6)
        assert length.tolist() == [int(windows[n + i][1]) for i in range(4)]
        for row, i in zip(x, (1, 2), strict=True):
            assert torch.equal(row[:2], windows[n + i][0])
            assert not row[2].any()
    again = Generator().manual_seed(0)
    assert all(torch.equal(eps, torch.randn(4, 3, 6, generator=again)) for _, eps, _ in batches)

    held_out = source.held_out()
    assert held_out.shape == (16, 3, 6)
    valid = source.data.preprocess(source.data[8:9])[0]
    places = [valid[i : i + 3] for i in range(6)]
    assert all(any(torch.equal(x, place) for place in places) for x in held_out)


@pytest.mark.parametrize("after", [4, 7])
def test_resume(fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int):
    """In bfloat16, with momentum, averages and all."""
    config = unet(fields, precision="bfloat16", length_aware=True, warmup=2, clip=1.0, iterations=8)
    whole = weights(config, tmp_path / "whole", every=3)
    rate = loop.learning_rate

    def stop(config: Config, iteration: int) -> float:
        if iteration == after:
            raise KeyboardInterrupt
        return rate(config, iteration)

    out = tmp_path / "prior"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", stop)
        with pytest.raises(KeyboardInterrupt):
            weights(config, out, every=100, checkpoint_every=3)
    assert same(weights(config, out, every=100, checkpoint_every=3, resume=True), whole)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_workers(vectors: Path, tmp_path: Path):
    """Who reads the data does not matter, and torch's own generator is left alone."""
    alone = weights(mlp(vectors), tmp_path / "a")
    state = torch.get_rng_state()
    train(mlp(vectors), tmp_path / "b", progress=False, workers=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(alone, load_prior(tmp_path / "b", length=9).eps.state_dict())


@pytest.mark.parametrize("option", [{"precision": "bfloat16"}, {"channels_last": True}])
def test_how_it_is_computed(fields: Path, tmp_path: Path, option: dict[str, Any]):
    """Changes what is learnt by rounding alone."""
    one = weights(unet(fields), tmp_path / "a")
    other = weights(unet(fields, **option), tmp_path / "b")
    assert not same(one, other) or "channels_last" in option
    assert list(one) == list(other)
    moved = [float((one[k] - other[k]).abs().max()) for k in one]
    assert max(moved) < 6 * 3e-3  # no step moves a weight by more than the learning rate or so
    assert all(value.is_contiguous() for value in other.values())


def test_half_precision(vectors: Path, tmp_path: Path):
    """Half the size, and parameters rounded to float16; what is no parameter is kept."""
    full = weights(mlp(vectors, width=64), tmp_path / "full")
    half = weights(mlp(vectors, width=64), tmp_path / "half", half=True)
    for name, value in full.items():
        expected = value if name.endswith("freqs") else value.half().float()
        assert torch.equal(half[name], expected)
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]


# Every system


@pytest.mark.parametrize("system", [n for n, entry in CATALOGUE.items() if len(entry.dims) == 1])
def test_every_system(system: str, monkeypatch: pytest.MonkeyPatch):
    """Is simulated and standardised, by itself or by what was simulated."""
    parameters = {"hidden": True, "n": 4, "J": 3} if system == "lorenz96_two_scale" else {}
    config = Config(system=system, parameters=parameters, trajectories=20, states=8)
    monkeypatch.setitem(CATALOGUE, system, replace(CATALOGUE[system], burn_in=64))
    source = Simulated(config)
    assert source.data.shape == (18, 8, *source.state)
    assert source.held_out().shape == (4096, 5, *source.state)
    if system == "lorenz96_two_scale":
        assert source.state == (4,)
    if system != "lorenz63":
        x = torch.cat((source.data, source.validation)).flatten(0, 1)
        torch.testing.assert_close(x.mean(0), torch.zeros(source.state), atol=1e-3, rtol=0)
        torch.testing.assert_close(x.std(0, correction=0), torch.ones(source.state))


def test_coarsened_fields():
    config = Config(
        system="kolmogorov",
        parameters={"size": 16, "dt": 0.01},
        coarsen=2,
        trajectories=10,
        states=5,
    )
    catalogue = dict(CATALOGUE)
    try:
        CATALOGUE["kolmogorov"] = replace(CATALOGUE["kolmogorov"], burn_in=1)
        source = Simulated(config)
    finally:
        CATALOGUE.update(catalogue)
    assert source.state == (2, 8, 8)
    assert source.mean.shape == source.std.shape == (2,)
    x = torch.cat((source.data, source.validation))
    torch.testing.assert_close(x.std(dim=(0, 1, 3, 4), correction=0), torch.ones(2))


# What is refused


def stopped(config: Config, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains up to the last checkpoint."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, out, progress=False)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"burn_in": 3}, r"burn_in of the data 9 \(now 3\)"),
        ({"block": 3}, r"block of the data 64 \(now 3\)"),
        ({"seed": 1}, r"seed of the data 0 \(now 1\)"),
    ],
)
def test_data_of_another_recipe(
    vectors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: dict[str, int],
    message: str,
):
    out = tmp_path / "prior"
    stopped(mlp(vectors), out, monkeypatch)
    other = Recipe("lorenz96", {"n": 6}, trajectories=10, length=8, **{"burn_in": 9, **option})
    generate(other, tmp_path / "other.h5", progress=False, report=lambda _: None)
    with pytest.raises(ValueError, match=f"is a checkpoint of another run: {message}$"):
        train(mlp(tmp_path / "other.h5"), out, progress=False, resume=True)


@pytest.mark.parametrize("file_first", [False, True])
def test_data_of_another_kind(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_first: bool
):
    """Simulated in memory, then read from a file, or the other way round."""
    recipe = Recipe("lorenz63", {}, trajectories=10, length=8)
    generate(recipe, tmp_path / "data.h5", progress=False, report=lambda _: None)
    from_file = mlp(tmp_path / "data.h5", trajectories=10, states=8)
    kinds = [(from_file, "a data set"), (replace(from_file, data=""), "simulated in memory")]
    (first, a), (second, b) = kinds if file_first else reversed(kinds)

    stopped(first, tmp_path / "prior", monkeypatch)
    with pytest.raises(ValueError, match=rf"of another run: data {a} \(now {b}\)$"):
        train(second, tmp_path / "prior", progress=False, resume=True)


def test_data_of_another_system(vectors: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="must be of 'lorenz63', but is of 'lorenz96'"):
        train(mlp(vectors, system="lorenz63"), tmp_path / "prior", progress=False)


def test_data_too_short(vectors: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="have 8 states, fewer than a window's 9"):
        train(mlp(vectors, order=4), tmp_path / "prior", progress=False)


def test_data_that_are_not_finite(vectors: Path, tmp_path: Path):
    copy = Path(shutil.copy(vectors, tmp_path / "copy.h5"))
    with h5py.File(copy, "r+") as file:
        file["trajectories"][:8, :] = np.nan
    with pytest.raises(ValueError, match=r"copy\.h5 are not finite"):
        train(mlp(copy), tmp_path / "prior", progress=False)


def test_missing_data(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no data set"):
        Config(data=str(tmp_path / "nothing.h5"))


def test_resume_on_other_data(vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Data may move, but must be the same."""
    out, copy = tmp_path / "prior", Path(shutil.copy(vectors, tmp_path / "copy.h5"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_prior", lambda *_, **__: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the checkpoint stays
        train(mlp(vectors), out, progress=False, every=5)
    assert not out.exists()
    train(mlp(copy), tmp_path / "moved", progress=False)
    shutil.copy(tmp_path / "prior.checkpoint", tmp_path / "other.checkpoint")
    assert same(weights(mlp(copy), out, resume=True), weights(mlp(vectors), tmp_path / "again"))

    with h5py.File(copy, "r+") as file:
        file.attrs["seed"] = 8
    with pytest.raises(ValueError, match=r"another run: seed of the data 0 \(now 8\)"):
        weights(mlp(copy), tmp_path / "other", resume=True)


# The command line


def test_command(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command line overrides the file."""
    file = tmp_path / "c.json"
    values = {"data": str(vectors), "width": 16, "depth": 1, "order": 1, "iterations": 3}
    file.write_text(json.dumps(values))
    out = tmp_path / "c.safetensors"
    words = ["--batch-size", "4", "--width", "8", "--length-aware", "--validation", "8", "--half"]

    assert main(["train", str(file), *words, "--out", str(out)]) == 0
    training = read_record(out)["training"]
    assert (training["width"], training["depth"], training["system"]) == (8, 1, "lorenz96")
    assert training["length_aware"]
    assert (tmp_path / "c.samples.png").read_bytes()[1:4] == b"PNG"
    capsys.readouterr()

    file.write_text(json.dumps(values | {"widht": 3}))
    assert main(["train", str(file)]) == 1
    error = capsys.readouterr().err
    assert "c.json has no option 'widht': the nearest is 'width'" in error

    again = ["train", str(vectors), "--order", "1", *words, "--no-figure", "--iterations", "1"]
    assert main([*again, "--out", str(tmp_path / "d.safetensors")]) == 0
    assert not (tmp_path / "d.samples.png").exists()


def test_samples_of_fields(fields: Path, tmp_path: Path):
    train(unet(fields, iterations=1), tmp_path / "prior", progress=False)
    draw_samples(tmp_path / "prior", tmp_path / "picture.png", samples=2, length=4, steps=2)
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
