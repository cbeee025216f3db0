"""Times what comes before the first sample: the import, and the first call.

Each in a process of its own; that of torch alone is beside it, since no import takes less.
"""

import subprocess
import sys

import pytest

FIRST = """
import torch
from sda_fast import VPSDE, MCScoreNet, sample
network = MCScoreNet(3, order=2, embedding=32, hidden_features=[256] * 5)
sample(VPSDE(network, shape=(65, 3)), (1,), steps=1)
"""
PROGRAMS = {"torch alone": "import torch", "import": "import sda_fast", "first sample": FIRST}


@pytest.mark.parametrize("program", PROGRAMS)
def test_startup(timed, program: str):
    def run() -> None:
        subprocess.run([sys.executable, "-c", PROGRAMS[program]], check=True)

    timed("start of a process", program, run, rounds=3, warmup_rounds=1)
