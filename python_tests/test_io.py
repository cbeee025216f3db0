"""Priors on disk: what is saved comes back, and what is no prior is told apart."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import sda_fast
from sda_fast import (
    Centre,
    Junction,
    MCScoreNet,
    NoisyLorenz63,
    Standardisation,
    load_prior,
    sample,
    save_prior,
)
from sda_fast.io import FORMAT, atomic_write, build_network, read_record

NETWORK = {
    "features": 3,
    "order": 2,
    "embedding": 8,
    "hidden_features": [16, 16],
    "activation": "SiLU",
}


def record(**network: Any) -> dict[str, Any]:
    return {
        "network": NETWORK | network,
        "schedule": {"class": "VPSDE", "alpha": "cos", "eta": 1e-3},
        "shape": [20, 3],
        "system": "somewhere",
        "training": {"iterations": 3},
    }


@pytest.fixture
def network() -> MCScoreNet:
    return build_network(NETWORK)


@pytest.fixture
def path(tmp_path: Path, network: MCScoreNet) -> Path:
    save_prior(tmp_path / "prior.safetensors", network, record())
    return tmp_path / "prior.safetensors"


def test_round_trip(path: Path, network: MCScoreNet):
    sde = load_prior(path)

    assert sde.shape == torch.Size((20, 3))
    saved, loaded = network.state_dict(), sde.eps.state_dict()
    assert list(saved) == list(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert not any(p.requires_grad for p in sde.parameters())
    assert not sde.eps.training

    x, t = torch.randn(2, 20, 3), torch.tensor(0.4)
    assert torch.allclose(sde.eps(x, t), network(x, t), rtol=1e-5, atol=1e-6)
    assert sample(load_prior(str(path)), (2,), steps=2).shape == (2, 20, 3)


@pytest.mark.parametrize("kind", ["VPSDE", "SubVPSDE", "SubSubVPSDE"])
def test_schedule(tmp_path: Path, network: MCScoreNet, kind: str):
    content = record() | {"schedule": {"class": kind, "alpha": "exp", "eta": 1e-2}}
    save_prior(tmp_path / "prior", network, content)
    sde = load_prior(tmp_path / "prior")
    assert type(sde) is getattr(sda_fast, kind)
    assert (sde.schedule, sde.eta) == ("exp", 1e-2)


def test_record(path: Path):
    """The record is in the file, as plain metadata that any safetensors reader shows."""
    assert read_record(path) == record()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == FORMAT
    assert json.loads(metadata["record"]) == record()


def test_float64_is_saved_in_float32(tmp_path: Path, network: MCScoreNet):
    save_prior(tmp_path / "prior", network.double(), record())
    loaded = load_prior(tmp_path / "prior")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("length", [5, 7, 65])
def test_length(path: Path, length: int):
    assert load_prior(path, length=length).shape == torch.Size((length, 3))


def test_length_shorter_than_a_window(path: Path):
    with pytest.raises(ValueError, match=r"at least 2k \+ 1 = 5 states .* got 4"):
        load_prior(path, length=4)


def test_composition(path: Path, tmp_path: Path):
    assert load_prior(path, composition=Centre(2)).eps.plan(20).lengths == [5]
    with pytest.raises(ValueError, match="length_aware=True"):
        load_prior(path, composition="junction")

    aware = build_network(NETWORK | {"length_aware": True})
    save_prior(tmp_path / "aware", aware, record(length_aware=True))
    sde = load_prior(tmp_path / "aware", composition=Junction(5, 3), length=12)
    assert sde.eps.composition == Junction(5, 3)
    assert sample(sde, (2,), steps=2).shape == (2, 12, 3)


def test_missing_file(tmp_path: Path):
    message = r"no prior '.*nothing': neither a file nor one of lorenz63, lorenz63-w9"
    with pytest.raises(FileNotFoundError, match=message):
        load_prior(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no prior 'lorenz': "):
        load_prior("lorenz")
    with pytest.raises(FileNotFoundError):
        load_prior(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100])
def test_garbage(tmp_path: Path, content: bytes):
    (tmp_path / "prior").write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_prior(tmp_path / "prior")


def test_truncated_file(path: Path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_prior(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "sda_fast prior 99"}])
def test_other_safetensors(tmp_path: Path, metadata: dict[str, str] | None):
    save_file({"x": torch.zeros(3)}, tmp_path / "other", metadata=metadata)
    form = None if metadata is None else metadata["format"]
    message = f"not a prior of this package: its format is {form!r}, expected {FORMAT!r}"
    with pytest.raises(ValueError, match=message):
        load_prior(tmp_path / "other")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "is not a whole prior: its record has no network, schedule, shape"),
        ({"network": {}, "schedule": {}}, "its record has no shape"),
        (
            {"network": {}, "schedule": {"class": "SCHEDULES"}, "shape": [5, 3]},
            "is of a noise process 'SCHEDULES', expected one of VPSDE, SubVPSDE, SubSubVPSDE",
        ),
    ],
)
def test_record_that_is_not_whole(tmp_path: Path, record: dict[str, Any], message: str):
    path = tmp_path / "part.safetensors"
    metadata = {"format": FORMAT, "record": json.dumps(record)}
    save_file({"weight": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_prior(path)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation must be one of ReLU, .*, got 'Tanh'"):
        build_network(NETWORK | {"activation": "Tanh"})


def test_weights_of_another_network(path: Path, tmp_path: Path, network: MCScoreNet):
    save_prior(tmp_path / "wrong", network, record(hidden_features=[8, 8]))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_prior(tmp_path / "wrong")


# Files are written as a whole or not at all


@pytest.mark.parametrize("name", ["file/prior", "missing/prior"])
def test_atomic_write_names_the_file(name: str, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=rf"{name} could not be written \("):
        atomic_write(tmp_path / name, b"one")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_atomic_write(tmp_path: Path):
    target = tmp_path / "file"
    atomic_write(target, b"one")
    (tmp_path / "reader").hardlink_to(target)  # who has the old file open goes on reading it
    atomic_write(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert (tmp_path / "reader").read_bytes() == b"one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "reader"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_interrupted_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, network: MCScoreNet, error: BaseException
):
    """The file that was there stays, and nothing else is left."""
    before = path.read_bytes()

    def interrupted(_: int) -> None:
        raise error

    monkeypatch.setattr("os.fsync", interrupted)
    for p in network.parameters():
        p.data.zero_()
    with pytest.raises(type(error)) as raised:
        save_prior(path, network, record())
    if isinstance(error, OSError):
        assert f"{path} could not be written (No space left on device, " in str(raised.value)
        assert str(raised.value).endswith("what was there before is kept")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_half_precision(tmp_path: Path, network: MCScoreNet):
    """Parameters are rounded to float16 and loaded in float32; what is no parameter is exact."""
    save_prior(tmp_path / "half", network, record(), half=True)
    stored = load_file(tmp_path / "half")
    loaded = load_prior(tmp_path / "half").eps.state_dict()
    for name, value in network.state_dict().items():
        parameter = not name.endswith("freqs")
        assert stored[name].dtype == (torch.float16 if parameter else torch.float32)
        assert torch.equal(loaded[name], value.half().float() if parameter else value)

    network.kernel.network[0].weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"kernel\.network\.0\.weight must be less than 65504"):
        save_prior(tmp_path / "half", network, record(), half=True)
    assert load_file(tmp_path / "half").keys() == stored.keys()


def test_composition_of_the_record(tmp_path: Path):
    """Is the one by default."""
    aware = build_network(NETWORK | {"length_aware": True})
    save_prior(tmp_path / "p", aware, record(length_aware=True) | {"composition": "junction"})
    assert load_prior(tmp_path / "p").eps.composition == "junction"
    assert load_prior(tmp_path / "p", composition="centre").eps.composition == "centre"


def test_standardisation(path: Path, tmp_path: Path, network: MCScoreNet):
    content = record() | {"mean": [1.0, 2.0, 3.0], "std": [2.0, 2.0, 4.0]}
    save_prior(tmp_path / "p", network, content)
    scale = Standardisation.load(tmp_path / "p")
    x = torch.tensor([[3.0, 2.0, -1.0]], dtype=torch.float64)
    assert scale.preprocess(x).tolist() == [[1, 0, -1]]
    assert torch.equal(scale.postprocess(scale.preprocess(x)), x)

    # integers in a floating type, as which a deviation of 0.5 is not 0
    scale = Standardisation(torch.tensor([0.5, 0.25, -0.75]), torch.tensor([0.5, 1.5, 2.5]))
    whole = torch.tensor([[3, 2, -1]])
    assert torch.equal(scale.preprocess(whole), scale.preprocess(whole.float()))
    assert torch.equal(scale.postprocess(whole), scale.postprocess(whole.float()))

    fields = Standardisation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), dims=3)
    x = torch.ones(4, 2, 5, 5)
    expected = torch.tensor([2.0, 5.0]).reshape(2, 1, 1).expand(4, 2, 5, 5)
    assert torch.equal(fields.postprocess(x), expected)

    shipped, x = Standardisation.load("lorenz63"), torch.randn(4, 3)
    torch.testing.assert_close(shipped.preprocess(x), NoisyLorenz63.preprocess(x))
    torch.testing.assert_close(shipped.postprocess(x), NoisyLorenz63.postprocess(x))
    with pytest.raises(ValueError, match="does not say how its states are standardised"):
        Standardisation.load(path)


def test_build_network():
    """The activation by name; all else as MCScoreNet takes it."""
    network = build_network({"features": 2, "context": 1, "order": 1, "hidden_features": [4]})
    assert isinstance(network.kernel.network[1][2], torch.nn.ReLU)
    assert network(torch.randn(1, 5, 2), torch.tensor(0.5), torch.zeros(1)).shape == (1, 5, 2)

    fields = build_network(
        {
            "features": 2,
            "order": 1,
            "spatial": 2,
            "hidden_channels": [4, 6],
            "hidden_blocks": [1, 1],
            "activation": "ELU",
        }
    )
    x: Tensor = torch.randn(1, 5, 2, 4, 4)
    assert fields(x, torch.tensor(0.5)).shape == x.shape
