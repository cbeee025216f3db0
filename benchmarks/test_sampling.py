"""Times whole samples: of a Lorenz-63 trajectory of 65 states and of one of 8 flow states, of the
prior and of a posterior.

Time is proportional to the score evaluations, so that few steps do: 16 or 17 evaluations a sample
of Lorenz-63, 8 or 17 of the flow, and of 256 flows 2 or 17. Those many are of fields of 16², which
take minutes; of larger fields there are fewer. Where azula or the reference package are installed,
they draw too.
"""

import pytest

from .samples import PEERS, Problem, kolmogorov, lorenz63, sampling_work
from .workloads import PAPER, SMALL

SLOW = pytest.mark.slow
CODES = ["eager", pytest.param("compiled", marks=SLOW), "native", "native bfloat16", *PEERS]
GRID = [(batch, corrections) for batch in (1, 16, 256) for corrections in (0, 1, 16)]

each_law = pytest.mark.parametrize("law", ["prior", "posterior"])


@pytest.fixture
def drawn(timed, device: str, law: str, batch: int, corrections: int, code: str):
    """Times a code: `drawn(title, problem, steps)`."""

    def time(title: str, problem: Problem, steps: int) -> None:
        if code == "azula" and law == "posterior":
            pytest.skip("azula draws from the prior")
        if code in PEERS:
            pytest.importorskip(PEERS[code], exc_type=ImportError)
        options = {"guided": law == "posterior", "device": device, "peers": device == "cpu"}
        timed(
            f"{title} {law}, B = {batch}, C = {corrections}",
            lambda: sampling_work(problem, batch, steps, corrections, **options),
        )

    return time


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("batch", "corrections"),
    [
        pytest.param(batch, corrections, marks=[SLOW] * (batch == 256 or corrections != 1))
        for batch, corrections in GRID
    ],
)
@each_law
def test_lorenz63(drawn, batch: int, corrections: int, code: str):
    drawn("Lorenz-63", lorenz63(), {0: 16, 1: 8, 16: 1}[corrections])


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("side", "channels", "batch", "corrections"),
    [
        (32, SMALL, 1, 1),
        pytest.param(32, SMALL, 16, 1, marks=SLOW),
        *(pytest.param(16, SMALL, *numbers, marks=SLOW) for numbers in GRID),
        pytest.param(64, PAPER, 1, 0, marks=SLOW),
        pytest.param(64, PAPER, 1, 1, marks=SLOW),
    ],
)
@each_law
def test_kolmogorov(
    drawn, side: int, channels: tuple[int, ...], batch: int, corrections: int, code: str
):
    evaluations = 2 if batch == 256 else 8
    steps = max(evaluations // (1 + corrections), 1)
    drawn(f"flow {side}² {channels}", kolmogorov(side, channels), steps)
