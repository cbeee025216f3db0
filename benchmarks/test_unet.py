"""Times the U-Net on windows of fields: the forward pass and the vector-Jacobian product.

Four windows of 5 states of 2 components: on fields of 64² the paper's Kolmogorov network, of
channels (96, 192, 384), and a small one, which is on 32² cells too, beside one of four levels that
is told a forcing. And the paper's baseline, a U-Net over the time of trajectories of 65 states.
"""

import pytest

from .workloads import DEEP, PAPER, SMALL, time_score, unet_score

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


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        pytest.param(batch, code, marks=[SLOW] * (code == "compiled" or batch > 16))
        for batch in (1, 16, 128)
        for code in CODES[:4]
    ],
)
@pytest.mark.parametrize("kind", ["forward", "vjp"])
def test_unet_over_time(timed, device: str, kind: str, batch: int, code: str):
    title = f"U-Net over time (64,) {kind}, B = {batch}"
    timed(title, lambda: time_score(batch, device).work(kind))
