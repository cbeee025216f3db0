"""The command line."""

import json
import subprocess
import sys

import pytest

from sda_fast import training
from sda_fast.cli import main
from sda_fast.io import build_network, save_prior
from sda_fast.systems import MarkovChain


def test_info(capsys: pytest.CaptureFixture[str]):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in ("sda_fast", "torch", "instruction set", "CUDA library", "threads"):
        assert word in printed


@pytest.mark.parametrize("name", ["lorenz63", "lorenz63-w9"])
def test_prior(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["prior", name]) == 0
    printed = capsys.readouterr().out
    assert "lorenz63" in printed
    assert "denoising error" in printed


def test_module_runs():
    result = subprocess.run(
        [sys.executable, "-m", "sda_fast", "--help"], capture_output=True, text=True, check=True
    )
    assert "demo" in result.stdout


def test_train(tmp_path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "prior.safetensors"
    size = ["--order", "1", "--width", "8", "--depth", "1", "--states", "8"]
    effort = ["--iterations", "3", "--batch-size", "4", "--trajectories", "10"]

    assert main(["train", "lorenz63", *size, *effort, "--out", str(out)]) == 0
    assert out.is_file()
    printed = capsys.readouterr().out
    assert str(out) in printed
    assert "denoising_error" in json.loads(printed.split("\n", 1)[1])

    before = out.read_bytes()
    again = ["train", "lorenz63", *size, *effort, "--seed", "1", "--out", str(out), "--no-figure"]
    assert main(again) == 1
    assert "prior.safetensors is there already: --resume" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*again, "--overwrite"]) == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prior", "lorenz64"], "no prior 'lorenz64'"),
        (["demo", "--out", "nowhere"], "no directory 'nowhere'"),
        (["train", "lorenz63", "--width", "0"], "width must be positive, got 0"),
        (["train", "lorenz63", "--lengths", "3"], "lengths are only for"),
        (["train", "lorenz63", "--threads", "0"], "threads must be at least 1, got 0"),
        (["train", "lorenz63", "--workers", "-1"], "workers must not be negative, got -1"),
        (["train", "lorenz63", "--seed", str(2**64)], "seed must be between 0 and 2^63 - 1, got 1"),
        (["train", "lorenz63", "--device", "cuda:99"], "device must be one that torch computes on"),
        (["train", "lorenz63", "--device", "abacus"], "on, got 'abacus': "),
        (["demo", "--members", "0"], "members must be at least 1, got 0"),
        (["demo", "--seed", "-1"], "seed must be between 0 and 2^63 - 1, got -1"),
    ],
)
def test_errors_are_one_line(
    words, message, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Before anything is simulated."""
    monkeypatch.setattr(MarkovChain, "trajectory", None)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_prior_of_a_users_own(tmp_path, capsys: pytest.CaptureFixture[str]):
    """It was saved with what it needs to be loaded, and no more."""
    network = {"features": 3, "order": 1, "hidden_features": [8]}
    schedule = {"class": "VPSDE", "alpha": "cos", "eta": 1e-3}
    record = {"network": network, "schedule": schedule, "shape": [9, 3]}
    save_prior(tmp_path / "own.safetensors", build_network(network), record)
    assert main(["prior", str(tmp_path / "own.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "[9, 3]" in printed
    assert "denoising error" not in printed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FloatingPointError("1 of 3 samples\nare not finite"), "1 of 3 samples are not finite"),
        (ImportError("figures need matplotlib"), "figures need matplotlib"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_no_picture(
    error, reason, tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Is no failure of a training that is done."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training, "draw_samples", fail)
    size = ["--order", "1", "--width", "8", "--depth", "1", "--states", "8"]
    effort = ["--iterations", "3", "--batch-size", "4", "--trajectories", "10"]
    out = tmp_path / "prior.safetensors"
    assert main(["train", "lorenz63", *size, *effort, "--out", str(out)]) == 0
    assert out.is_file()
    assert capsys.readouterr().err.endswith(f"\nno picture of samples: {reason}\n")


def test_unknown_system_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "lorenz64"])
    assert "lorenz63" in capsys.readouterr().err
