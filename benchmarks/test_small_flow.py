"""Times samples of a small flow, of the prior and of a posterior: one to many, with few corrections
or many.

They are of 8 states of two components, in 8 or 17 evaluations, and of 256 samples 2 or 17, which
take minutes.
"""

import pytest

from .samples import GRID, PEERS, kolmogorov
from .workloads import SMALL

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("code", ["eager", "compiled", "native", "native bfloat16", *PEERS])
@pytest.mark.parametrize(("batch", "corrections"), GRID)
@pytest.mark.parametrize("law", ["prior", "posterior"])
def test_small_kolmogorov(drawn, batch: int, corrections: int, code: str):
    evaluations = 2 if batch == 256 else 8
    steps = max(evaluations // (1 + corrections), 1)
    drawn(f"flow 16² {SMALL}", kolmogorov(16, SMALL), steps)
