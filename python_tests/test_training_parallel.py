"""Several processes learn what one learns with the same batches."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_data import write_fields

from sda_fast import load_prior
from sda_fast.io import read_record
from sda_fast.training.parallel import Group

pytest.importorskip("h5py")
pytest.importorskip("jax_cfd")
if not torch.distributed.is_available():
    pytest.skip("torch has no distributed package", allow_module_level=True)

# One process that has imported everything forks those that learn together, as torchrun would.
SCRIPT = """
import os, sys, torch
from sda_fast.cli import main

def run(rank, size, words):
    child = os.fork()
    if child == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
        status = 1
        try:
            torch.set_num_threads(1)
            status = main(words)
        finally:
            os._exit(status)
    return child

for size in (1, 2):
    out = f"{sys.argv[1]}/{size}.safetensors"
    children = [run(rank, size, [*sys.argv[2:], "--out", out]) for rank in range(size)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), statuses
"""

SIZE = ["--order", "1", "--embedding", "8", "--hidden-channels", "8", "12", "--validation", "8"]
EFFORT = ["--iterations", "8", "--batch-size", "6", "--every", "2", "--clip", "1"]


def port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def losses(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("options", [[], ["--consistency"]], ids=["plain", "consistency"])
def test_two_processes(tmp_path: Path, options: list[str]):
    """Of whom each takes half of the batch: the same losses and weights, to rounding."""
    data = write_fields(tmp_path / "data.h5")
    words = ["train", str(data), *SIZE, *EFFORT, "--length-aware", *options]
    words += ["--device", "cpu", "--no-figure"]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote") == 2  # one for each run, not for each process

    assert losses(tmp_path / "2.metrics.csv") == pytest.approx(
        losses(tmp_path / "1.metrics.csv"), rel=1e-4
    )
    one, two = (load_prior(tmp_path / f"{n}.safetensors", length=9) for n in (1, 2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert (a - b).norm() <= 1e-3 * a.norm()  # AdamW magnifies rounding of small gradients
    assert read_record(tmp_path / "2.safetensors")["training"]["batch_size"] == 6


def test_shares():
    groups = [Group(rank, 3, torch.device("cpu")) for rank in range(3)]
    assert [i for group in groups for i in range(12)[group.share(12)]] == list(range(12))
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes, got 8"):
        groups[0].share(8)


@pytest.mark.slow
def test_torchrun(tmp_path: Path):
    words = (
        "-m torch.distributed.run --standalone --nproc-per-node 2 "
        "-m sda_fast train lorenz63 --width 8 --depth 1 --states 8 --trajectories 10 "
        "--iterations 4 --batch-size 4 --device cpu --no-figure --out"
    )
    result = subprocess.run(
        [sys.executable, *words.split(), str(tmp_path / "prior.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert load_prior(tmp_path / "prior.safetensors").shape == (65, 3)
