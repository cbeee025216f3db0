"""Times the window MLP: the forward pass and the vector-Jacobian product, against the operations.

The residual MLP on the windows of trajectories, width 128 and 256, depth 5, windows of 5 states,
trajectories of 65: the paper's Lorenz-63 network.
"""

import pytest

from .workloads import mlp_score

SLOW = pytest.mark.slow
CODES = ("eager", "compiled", "native", "native bfloat16", "native tf32")


@pytest.mark.parametrize(
    ("width", "batch", "code"),
    [
        pytest.param(width, batch, code, marks=[SLOW] * slow)
        for width in (128, 256)
        for batch in (1, 16, 128, 1024)
        for code in CODES
        for slow in [width == 128 or batch == 1024 or (code == "compiled" and batch != 16)]
    ],
)
@pytest.mark.parametrize("kind", ["forward", "vjp"])
def test_mlp(timed, device: str, kind: str, width: int, batch: int, code: str):
    if code == "native tf32" and device == "cpu":
        pytest.skip("the CPU has no TF32 products")
    title = f"MLP {kind}, width {width}, B = {batch}"
    timed(title, lambda: mlp_score(batch, width, device).work(kind))
