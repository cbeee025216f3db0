"""Times the U-Net on windows of fields: the forward pass and the vector-Jacobian product.

Four windows of 5 states of 2 components: on fields of 64² the paper's Kolmogorov network, of
channels (96, 192, 384), and a small one, which is on 32² cells too, beside one of four levels that
is told a forcing. And the paper's baseline, a U-Net over the time of trajectories of 65 states.

And the convolutions of those on 64² cells alone, on a CPU, of which the work is that of a direct
sum.
"""

import pytest
import torch
from torch.nn.functional import conv2d, silu

from sda_fast.fused_unet.convolution import OneDNN, Winograd

from .turns import Work
from .workloads import DEEP, PAPER, SMALL, relative_error, time_score, unet_score

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


@pytest.mark.slow
@pytest.mark.parametrize("code", ["eager", "oneDNN", "native"])
@pytest.mark.parametrize(
    ("channels", "side"),
    [(c, 64 >> level) for net in (SMALL, PAPER) for level, c in enumerate(net)],
)
def test_convolution(timed, device: str, channels: int, side: int, code: str):
    if device != "cpu":
        pytest.skip("on a GPU convolutions are the library's")

    def work() -> Work:
        x = silu(torch.randn(4, channels, side + 2, side + 2))
        x = x.contiguous(memory_format=torch.channels_last)
        bound = (9 * channels) ** -0.5
        weight = torch.empty(channels, channels, 3, 3).uniform_(-bound, bound)
        bias = torch.randn(channels)
        packed = {
            "oneDNN": OneDNN(weight, bias, (1, 1), (0, 0)),
            "native": Winograd(weight, bias, (1, 1), (0, 0)),
        }
        runs = {code: lambda c=c: c(x) for code, c in packed.items()}
        runs["eager"] = lambda: conv2d(x, weight, bias)
        expected = conv2d(x.double(), weight.double(), bias.double())
        return Work(
            runs,
            lambda code: relative_error(runs[code](), expected),
            flops=2 * expected.numel() * 9 * channels,
            bytes=4 * (x.numel() + expected.numel() + weight.numel()),
            limit=1e-5,
        )

    timed(f"convolution of {channels} channels, 4 fields of {side}²", work)
