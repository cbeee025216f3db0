"""Times what comes before the first sample: the import, and the first call.

Each in a process of its own; that of torch alone is beside it, since no import takes less.
"""

import subprocess
import sys
from functools import partial

import pytest

from .turns import Work

FIRST = """
import torch
from sda_fast import VPSDE, MCScoreNet, sample
network = MCScoreNet(3, order=2, embedding=32, hidden_features=[256] * 5)
sample(VPSDE(network, shape=(65, 3)), (1,), steps=1)
"""
PROGRAMS = {"torch alone": "import torch", "import": "import sda_fast", "first sample": FIRST}


def start(program: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAMS[program]], check=True)


@pytest.mark.parametrize("code", PROGRAMS)
def test_startup(timed, code: str):
    runs = {program: partial(start, program) for program in PROGRAMS}
    timed("start of a process", lambda: Work(runs), processes=True)
