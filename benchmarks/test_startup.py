"""Times what comes before the first sample: the import, and the first call.

Each in a process of its own, from its start to its end; that of torch alone is beside it, since no
import takes less. The first samples of "eager" and "compiled" are those of the published method,
the latter with the compiler's time, as if it had never seen the network.
"""

import os
import subprocess
import sys
from functools import partial

import pytest

from .results import ROOT
from .samples import importable
from .turns import Work

MAKE = """
import torch
from sda_fast import VPSDE, MCScoreNet, sample
network = MCScoreNet(3, order=2, embedding=32, hidden_features=[256] * 5).requires_grad_(False)
sde = VPSDE(network, shape=(65, 3))
"""
PUBLISHED = f"""{MAKE}
from benchmarks.published import Composed, posterior
composed = Composed(network.kernel, network.order)
"""
THEIRS = """
import sda.score
sda.score.tqdm = lambda steps, **_: steps
network = sda.score.MCScoreNet(3, order=2, embedding=32, hidden_features=[256] * 5)
sda.score.VPSDE(network, shape=(65, 3)).sample((1,), steps=1)
"""
PROGRAMS = {
    "import torch": "import torch",
    "import sda_fast": "import sda_fast",
    "import sda": "import sda.score",
    "eager": f"{PUBLISHED}sde.eps = composed\nposterior(sde, (1,), 1)",
    "compiled": f"{PUBLISHED}sde.eps = torch.compile(composed)\nposterior(sde, (1,), 1)",
    "native": f"{MAKE}sample(sde, (1,), steps=1)",
    "sda": THEIRS,
}


def start(program: str) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAMS[program]]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    "code",
    [pytest.param(code, marks=[pytest.mark.slow] * (code == "compiled")) for code in PROGRAMS],
)
def test_startup(timed, code: str):
    if code.endswith("sda") and not importable("sda.score"):
        pytest.skip("the reference package is not installed")
    runs = {program: partial(start, program) for program in PROGRAMS}
    timed("first sample, from the start of a process", lambda: Work(runs), processes=True)
