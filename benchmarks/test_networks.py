"""Times score networks: the forward pass and the vector-Jacobian product, against the operations.

The residual MLP on the windows of trajectories, width 128 and 256, depth 5, windows of 5 states,
trajectories of 65: the paper's Lorenz-63 network. And a U-Net on windows of two-dimensional fields.
"""

import pytest

from .workloads import PAPER, SMALL, mlp_score, unet_score

SLOW = pytest.mark.slow

each_kind = pytest.mark.parametrize("kind", ["forward", "vjp"])


@pytest.mark.parametrize(
    ("width", "batch", "code"),
    [
        pytest.param(width, batch, code, marks=[SLOW] * slow)
        for width in (128, 256)
        for batch in (1, 16, 128)
        for code in ("eager", "compiled", "native", "native bfloat16")
        for slow in [width == 128 or (code == "compiled" and batch != 16)]
    ],
)
@each_kind
def test_mlp(timed, device: str, kind: str, width: int, batch: int, code: str):
    title = f"MLP {kind}, width {width}, B = {batch}"
    timed(title, lambda: mlp_score(batch, width, device).work(kind))


@pytest.mark.parametrize(
    ("side", "channels", "code"),
    [
        pytest.param(side, channels, code, marks=[SLOW] * slow)
        for side, channels in ((32, SMALL), (64, SMALL), (64, PAPER))
        for code in ("eager", "compiled", "native", "channels last, bfloat16")
        for slow in [side == 64 or code == "compiled"]
    ],
)
@each_kind
def test_unet(timed, device: str, kind: str, side: int, channels: tuple[int, ...], code: str):
    title = f"U-Net {channels} {kind}, 4 windows of {side}²"
    timed(title, lambda: unet_score(side, channels, device).work(kind))
