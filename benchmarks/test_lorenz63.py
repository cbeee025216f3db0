"""Times samples of Lorenz-63, trajectories of 65 states, of the prior and of a posterior.

Time is proportional to the score evaluations, so that few steps do: 16 or 17 evaluations a sample.
"""

import pytest

from .samples import GRID, PEERS, importable, lorenz63, moments_work

SLOW = pytest.mark.slow
CODES = ["eager", pytest.param("compiled", marks=SLOW), "native", "native bfloat16", *PEERS]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("batch", "corrections"),
    [
        pytest.param(batch, corrections, marks=[SLOW] * (batch == 256 or corrections != 1))
        for batch, corrections in GRID
    ],
)
@pytest.mark.parametrize("law", ["prior", "posterior"])
def test_lorenz63(drawn, batch: int, corrections: int, code: str):
    drawn("Lorenz-63", lorenz63(), {0: 16, 1: 8, 16: 1}[corrections])


@pytest.mark.parametrize("code", ["azula", "native", "native bfloat16"])
@pytest.mark.parametrize("batch", [pytest.param(1, marks=SLOW), pytest.param(16, marks=SLOW)])
def test_moments(timed, device: str, batch: int, code: str):
    """Guidance by moments, which is azula's own."""
    if device != "cpu" or not importable(PEERS["azula"]):
        pytest.skip("needs azula and a CPU")
    title = f"Lorenz-63 posterior by moments, B = {batch}, C = 1"
    timed(title, lambda: moments_work(lorenz63(), batch, 8, 1))
