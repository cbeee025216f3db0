"""Data sets of a user's own: what is written, refused, and learnt from."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sda_fast import GaussianScore, Standardisation, load_prior, sample
from sda_fast.cli import main
from sda_fast.data import (
    Recipe,
    Trajectories,
    Windows,
    generate,
    save_trajectories,
    trajectories,
)
from sda_fast.io import read_record
from sda_fast.schedule import VPSDE
from sda_fast.training import Config, loop, train

h5py = pytest.importorskip("h5py")

OWN: dict[str, Any] = {"system": "tide", "dt": 0.5, "units": "metres; hours"}
SHAPES = {
    "vectors": (10, 12, 3),
    "lines": (10, 9, 2, 8),
    "fields": (10, 9, 3, 8, 4),
    "volumes": (10, 7, 1, 4, 4, 4),
}
SMALL = {
    "order": 1,
    "embedding": 8,
    "width": 16,
    "depth": 1,
    "hidden_channels": (4, 6),
    "hidden_blocks": (1, 1),
    "iterations": 4,
    "batch_size": 4,
    "validation": 8,
    "length_aware": True,
}


def states(kind: str) -> torch.Tensor:
    return 5 + 2 * torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", list(SHAPES))
def test_read_back(kind: str, tmp_path: Path):
    x = states(kind)
    data = Trajectories(save_trajectories(tmp_path / "own.h5", x, **OWN), system="tide")

    assert data.shape == x.shape
    assert data.dims == ("trajectory", "time", "channel", "x", "y", "z")[: x.ndim]
    assert (data.system, data.recipe, data.dt, data.units) == ("tide", None, 0.5, "metres; hours")
    torch.testing.assert_close(data[:], x, rtol=0, atol=0)

    channels = x.double().movedim(2, 0).flatten(1)
    torch.testing.assert_close(data.mean.double(), channels.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(data.std.double(), channels.std(1, correction=0), rtol=1e-6, atol=0)
    assert Windows(data, (2, 5))[0][0].shape == (5, *x.shape[2:])
    assert os.listdir(tmp_path) == ["own.h5"]


def test_standardised_as_told(tmp_path: Path):
    x = states("vectors")
    path = save_trajectories(
        tmp_path / "own.h5", x, **OWN, mean=[1.0, 2.0, 3.0], std=torch.tensor([1.0, 2.0, 4.0])
    )
    expected = (x - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(Trajectories(path).preprocess(x), expected)


@pytest.mark.parametrize("block", [64, 100, 1000, 2**22])
def test_digest(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of every state, however few are read at once; not of the file's name or format."""
    monkeypatch.setattr(trajectories, "BLOCK", block)
    x = states("vectors")
    digest = Trajectories(save_trajectories(tmp_path / "own.h5", x, **OWN)).digest()
    again = save_trajectories(tmp_path / "again.h5", x.double(), **{**OWN, "units": "feet"})
    assert Trajectories(again).digest() == digest
    for place in ((0, 0, 0), (4, 7, 1), (9, 11, 2)):
        other = x.clone()
        other[place] += 1
        path = save_trajectories(tmp_path / "other.h5", other, **OWN)
        assert Trajectories(path).digest() != digest


def test_digest_of_a_large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is of a fixed number of blocks, the first and the last among them."""
    monkeypatch.setattr(trajectories, "BLOCK", 4 * 3 * 4)  # four states
    monkeypatch.setattr(trajectories, "BLOCKS", 4)
    data = Trajectories(save_trajectories(tmp_path / "own.h5", states("vectors"), **OWN))
    read = []
    get = Trajectories.__getitem__
    monkeypatch.setattr(Trajectories, "__getitem__", lambda d, k: read.append(k) or get(d, k))
    data.digest()
    places = [(rows.start, states.start) for rows, states in read]
    assert places == [(0, 0), (3, 0), (6, 4), (9, 8)]


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.float64])
def test_standardised_in_a_floating_type(kind: torch.dtype, tmp_path: Path):
    """Integers too: a mean and a deviation are none."""
    scale = {"mean": [0.5, 0.25, 0.75], "std": [0.5, 1.5, 2.5]}
    data = Trajectories(save_trajectories(tmp_path / "own.h5", states("vectors"), **OWN, **scale))
    x = torch.arange(6, dtype=kind).reshape(2, 3)
    y = x if kind.is_floating_point else x.float()
    for name in ("preprocess", "postprocess"):
        result = getattr(data, name)(x)
        assert torch.equal(result, getattr(data, name)(y))
        assert result.dtype == y.dtype


def test_what_is_constant_is_not_divided_by(tmp_path: Path):
    x = states("vectors")
    x[..., 1] = 7
    data = Trajectories(save_trajectories(tmp_path / "own.h5", x, **OWN))
    assert data.std[1] == 1
    assert (data.preprocess(x)[..., 1] == 0).all()


def test_what_is_read_a_trajectory_at_a_time(tmp_path: Path):
    """Larger than memory it may be: nothing asks for more than one trajectory."""

    class Lazy:
        shape = SHAPES["fields"]

        def __getitem__(self, key: Any) -> np.ndarray:
            assert isinstance(key, int)
            return states("fields")[key].double().numpy()

    data = Trajectories(save_trajectories(tmp_path / "own.h5", Lazy(), **OWN, space="ab"))
    torch.testing.assert_close(data[:], states("fields"), rtol=0, atol=0)
    assert data.dims[3:] == ("a", "b")


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(4, 5), {}, r"x must have shape \(n, L, C, \*space\), none of them 0, got"),
        (torch.zeros(4, 0, 3), {}, r"none of them 0, got \(4, 0, 3\)"),
        (torch.zeros(4, 5, 3), {"system": "lorenz63"}, "system must be a name of its own, not one"),
        (torch.zeros(4, 5, 3), {"system": ""}, "got ''"),
        (torch.zeros(4, 5, 3), {"dt": 0.0}, "dt must be positive, got 0.0"),
        (torch.zeros(4, 5, 3), {"dt": float("nan")}, "dt must be positive, got nan"),
        (torch.zeros(4, 5, 3, 8), {"space": ()}, "space must name the 1 dimensions of space"),
        (torch.zeros(4, 5, 3, 8), {"space": ("time",)}, r"another name, got \('time',\)"),
        (torch.zeros(4, 5, 3), {"mean": [0.0]}, "mean must be 3 finite numbers, one a channel"),
        (torch.zeros(4, 5, 3), {"std": [1.0, 0.0, 1.0]}, "std must be positive"),
        (
            torch.zeros(4, 5, 3).index_fill(1, torch.tensor(2), float("nan")),
            {},
            r"x must be finite, but is nan at \(0, 2, 0\)",
        ),
    ],
)
def test_refused(x: torch.Tensor, options: dict[str, Any], message: str, tmp_path: Path):
    """And nothing is left of it."""
    with pytest.raises(ValueError, match=message):
        save_trajectories(tmp_path / "own.h5", x, **{**OWN, **options})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [np.complex64, np.complex128, torch.complex64])
def test_complex_is_refused(kind: Any, tmp_path: Path):
    x = states("vectors")
    x = x.to(kind) if isinstance(kind, torch.dtype) else x.numpy().astype(kind)
    with pytest.raises(ValueError, match=r"x must be real, but trajectory 0 is (torch\.)?complex"):
        save_trajectories(tmp_path / "own.h5", x, **OWN)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64, torch.int32])
def test_kept_in_float32(kind: torch.dtype, tmp_path: Path):
    x = states("vectors").to(kind)
    x = x.requires_grad_() if kind.is_floating_point else x
    data = Trajectories(save_trajectories(tmp_path / "own.h5", x, **OWN))
    assert torch.equal(data[:], x.detach().float())


def test_masked(tmp_path: Path):
    """What is masked is missing, whatever number is beneath; a mask of nothing is none."""
    x = np.ma.masked_array(states("vectors").numpy(), mask=False)
    kept = Trajectories(save_trajectories(tmp_path / "own.h5", x, **OWN))[:]
    assert torch.equal(kept, states("vectors"))
    x[2, 3, 1] = np.ma.masked
    message = r"x must be finite, but is masked at \(2, 3, 1\): none may be missing"
    with pytest.raises(ValueError, match=message):
        save_trajectories(tmp_path / "masked.h5", x, **OWN)
    assert os.listdir(tmp_path) == ["own.h5"]


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_trajectories(tmp_path / "own.h5", states("vectors"), **OWN)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        OSError, match=r"own\.h5 could not be written \(No space left .*\): what was"
    ):
        save_trajectories(path, 2 * states("vectors"), **OWN)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["own.h5"]


def test_a_simulation_does_not_go_on_from_it(tmp_path: Path):
    path = save_trajectories(tmp_path / "own.h5", states("vectors"), **OWN)
    with pytest.raises(ValueError, match="is a data set of 'tide', which was not simulated"):
        generate(Recipe("lorenz96", {}), path)


def test_a_simulation_of_another_version(tmp_path: Path):
    path = save_trajectories(tmp_path / "own.h5", states("vectors"), **OWN)
    with h5py.File(path, "r+") as file:
        file.attrs["parameters"] = "{}"
    with pytest.raises(ValueError, match="is of an unknown system, 'tide'"):
        Trajectories(path)


@pytest.mark.parametrize("kind", list(SHAPES))
def test_learnt_from(kind: str, tmp_path: Path):
    """Its prior is sampled and guided like any other."""
    path = save_trajectories(tmp_path / "own.h5", states(kind), **OWN)
    config = Config(data=str(path), **SMALL)
    assert config.system == "tide"
    assert config.fields == (kind != "vectors")
    train(config, tmp_path / "prior.safetensors", progress=False, every=2)

    record = read_record(tmp_path / "prior.safetensors")
    assert record["system"] == "tide"
    state = SHAPES[kind][2:]
    prior = load_prior(tmp_path / "prior.safetensors", length=5, composition="junction")
    assert prior.shape == (5, *state)

    y = torch.zeros(3, *state)
    posterior = VPSDE(GaussianScore(y, lambda x: x[:, ::2], 0.1, prior), prior.shape)
    x = sample(posterior, (2,), steps=4, seed=0)
    physical = Standardisation.load(tmp_path / "prior.safetensors").postprocess(x)
    torch.testing.assert_close(physical, Trajectories(path).postprocess(x))


def test_goes_on_where_the_data_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And not with other data."""
    data = save_trajectories(tmp_path / "own.h5", states("fields"), **OWN)
    out = tmp_path / "prior.safetensors"
    train(Config(data=str(data), **SMALL), tmp_path / "whole.safetensors", progress=False)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        train(Config(data=str(data), **SMALL), out, progress=False, checkpoint_every=2)
    monkeypatch.undo()

    other = save_trajectories(tmp_path / "other.h5", states("fields") + 1, **OWN)
    with pytest.raises(ValueError, match="is a checkpoint of another run: mean of the data"):
        train(Config(data=str(other), **SMALL), out, progress=False, resume=True)

    # of the same mean and deviation
    swapped = save_trajectories(tmp_path / "swapped.h5", states("fields").flip(0), **OWN)
    with pytest.raises(ValueError, match=r"of another run: digest of the data '[0-9a-f]{16}'"):
        train(Config(data=str(swapped), **SMALL), out, progress=False, resume=True)

    moved = data.rename(tmp_path / "moved.h5")
    train(Config(data=str(moved), **SMALL), out, progress=False, resume=True)
    a, b = (load_prior(tmp_path / f"{name}.safetensors") for name in ("whole", "prior"))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_system_of_nobody():
    with pytest.raises(ValueError, match=r"system must be one of lorenz63, .*, got 'tide'"):
        Config(system="tide")


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """From the file to the prior and its picture, and to its configuration again."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    data = save_trajectories(tmp_path / "own.h5", states("fields"), **OWN)
    out = tmp_path / "prior.safetensors"
    words = ["train", str(data), "--out", str(out), "--order", "1", "--iterations", "2"]
    words += ["--hidden-channels", "4", "6", "--batch-size", "4", "--validation", "4"]
    assert main(words) == 0
    assert out.with_name("prior.samples.png").exists()

    options = json.loads(out.with_name("prior.config.json").read_text())
    assert options["system"] == "tide"
    assert (
        main(["train", str(out.with_name("prior.config.json")), "--no-figure", "--overwrite"]) == 0
    )
    assert "wrote" in capsys.readouterr().out


def test_without_h5py_nothing_else_fails():
    code = "import sys; sys.modules['h5py'] = None; from sda_fast.data import save_trajectories"
    subprocess.run([sys.executable, "-c", code], check=True)
