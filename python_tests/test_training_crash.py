"""A run that is killed again and again comes to the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sda_fast import load_prior

pytest.importorskip("h5py")

# One process that has imported everything forks those that are killed.
SCRIPT = """
import os, random, signal, struct, sys, time
import torch
from sda_fast.data import Recipe, generate
from sda_fast.training import Config, loop, train
from sda_fast.training.checkpoint import read_header
from pathlib import Path

torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
data = str(folder / "data.h5")
recipe = Recipe("lorenz63", {}, trajectories=10, length=8, burn_in=9)
generate(recipe, data, progress=False, report=lambda _: None)
config = Config(data=data, order=1, width=8, depth=1, embedding=4, iterations=200, batch_size=4,
                validation=8, length_aware=True)
progress = os.open(folder / "iteration", os.O_RDWR | os.O_CREAT)

rate = loop.learning_rate
def noted(config, iteration):
    os.pwrite(progress, struct.pack("q", iteration), 0)
    return rate(config, iteration)
loop.learning_rate = noted

def start(name):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(config, folder / name, resume=True, every=9, checkpoint_every=5, progress=False)
            status = 0
        finally:
            os._exit(status)
    return child

def reached():
    return struct.unpack("q", os.pread(progress, 8, 0))[0]

assert os.waitpid(start("whole"), 0)[1] == 0

random.seed(0)
checkpoint = folder / "prior.checkpoint"
killed, kept = 0, 0
while True:
    os.pwrite(progress, struct.pack("q", 0), 0)
    child = start("prior")
    if killed < kills:
        target = min(kept + random.randint(1, 30), config.iterations - 1)
        while reached() < target:
            time.sleep(1e-3)
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
    killed += 1
    if checkpoint.exists():
        at = reached()
        kept = read_header(checkpoint)["iteration"]
        print("killed at", at, "kept", kept)
        assert kept % 5 == 0 and at - kept <= 6, (at, kept)
print("done")
"""


def test_killed_runs(tmp_path: Path):
    """Whenever it is, no more than the steps since the last checkpoint are lost, and no file is
    left half written."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("killed at") >= 5

    for name in ("whole", "whole.best.safetensors"):
        one = load_prior(tmp_path / name, length=9).eps.state_dict()
        other = load_prior(tmp_path / name.replace("whole", "prior"), length=9).eps.state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*.checkpoint"))
