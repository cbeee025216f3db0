"""Times samples of a flow, trajectories of 8 states of two components, of the prior and of a
posterior.

Time is proportional to the score evaluations, so that few steps do: 8 a sample.
"""

import pytest

from .samples import PEERS, kolmogorov
from .workloads import PAPER, SMALL

SLOW = pytest.mark.slow
CODES = ["eager", pytest.param("compiled", marks=SLOW), "native", "native bfloat16", *PEERS]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("side", "channels", "batch", "corrections"),
    [
        (32, SMALL, 1, 1),
        pytest.param(32, SMALL, 16, 1, marks=SLOW),
        pytest.param(64, PAPER, 1, 0, marks=SLOW),
        pytest.param(64, PAPER, 1, 1, marks=SLOW),
    ],
)
@pytest.mark.parametrize("law", ["prior", "posterior"])
def test_kolmogorov(
    drawn, side: int, channels: tuple[int, ...], batch: int, corrections: int, code: str
):
    drawn(f"flow {side}² {channels}", kolmogorov(side, channels), 8 // (1 + corrections))
