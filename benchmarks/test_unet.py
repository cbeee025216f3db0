"""Times the U-Net on windows of fields: the forward pass and the vector-Jacobian product.

Four windows of 5 states of 2 components: on fields of 64² the paper's Kolmogorov network, of
channels (96, 192, 384), and a small one, which is on 32² cells too, beside one of four levels that
is told a forcing.
"""

import pytest

from .workloads import DEEP, PAPER, SMALL, unet_score

SLOW = pytest.mark.slow
CODES = ("eager", "compiled", "native", "native bfloat16", "channels last, bfloat16")


@pytest.mark.parametrize(
    ("side", "channels", "code"),
    [
        pytest.param(side, channels, code, marks=[SLOW] * slow)
        for side, channels in ((32, SMALL), (32, DEEP), (64, SMALL), (64, PAPER))
        for code in CODES
        for slow in [(side, channels) != (32, SMALL) or code == "compiled"]
    ],
)
@pytest.mark.parametrize("kind", ["forward", "vjp"])
def test_unet(timed, device: str, kind: str, side: int, channels: tuple[int, ...], code: str):
    title = f"U-Net {channels} {kind}, 4 windows of {side}²"
    timed(title, lambda: unet_score(side, channels, device).work(kind))
