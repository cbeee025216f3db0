"""Times the first and the last convolution of U-Nets alone, for docs/networks.md.

Four windows of 5 states of 2 channels: on 64 x 64 cells the paper's Kolmogorov network, of
(96, 192, 384) channels, and a small one; on 32 x 32 cells one of four levels that is told a forcing
and a mask besides. This says what there is to save, and has no other code to be compared with: the
report leaves it out.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sda_fast import ScoreUNet, ops
from sda_fast.score import sampling

pytestmark = pytest.mark.slow

WINDOWS = 4

# the channels at each depth, the blocks there, the cells along an axis, the channels of context
NETWORKS = {
    "(32, 64, 128)": ((32, 64, 128), (3, 3, 3), 64, 0),
    "(96, 192, 384)": ((96, 192, 384), (3, 3, 3), 64, 0),
    "(32, 64, 128, 192)": ((32, 64, 128, 192), (2, 2, 2, 2), 32, 6),
}


def make(name: str) -> tuple[ScoreUNet, Tensor, Tensor | None]:
    """Returns a network, windows and their context."""
    channels, blocks, cells, context = NETWORKS[name]
    torch.manual_seed(0)
    network = ScoreUNet(
        10,
        context,
        hidden_channels=channels,
        hidden_blocks=blocks,
        activation=nn.SiLU,
        padding_mode="circular",
    )
    c = torch.randn(context, cells, cells) if context else None
    return network.requires_grad_(False), torch.randn(WINDOWS, 10, cells, cells), c


def operations(network: ScoreUNet, run: Callable[[], object]) -> int:
    """Counts the multiplications and additions of the convolutions of a call."""
    counts = []

    def count(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(2 * output.numel() * module.weight[0].numel())

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    handles = [module.register_forward_hook(count) for module in convolutions]
    run()
    for handle in handles:
        handle.remove()
    return sum(counts)


@pytest.mark.parametrize("layer", ["first", "last", "last, centre"])
@pytest.mark.parametrize("name", NETWORKS)
def test_unet_ends(benchmark, name: str, layer: str):
    """Times the first and the last convolution, and the last of the centre state's channels alone:
    what there is to save by reading states rather than windows of them, and by computing what the
    composition keeps."""
    network, x, c = make(name)
    y = x if c is None else torch.cat((x, c.expand(len(x), *c.shape)), dim=1)
    with sampling():
        fused = network.fused(y)
    assert not isinstance(fused, str), fused

    first, last = fused.weights.heads[0], fused.weights.tails[-1]
    module = network.network.heads[0] if layer == "first" else network.network.tails[-1]
    convolution, inputs = (first, y) if layer == "first" else (last, None)
    if inputs is None:
        inputs = torch.randn(len(y), module.in_channels, *y.shape[2:])
    if layer == "last, centre":
        kept = slice(4, 6)
        options = (module.stride, tuple(last.padding))
        convolution = type(last)(module.weight[kept], module.bias[kept], *options)

    with torch.no_grad(), ops.backend("reference"):
        whole = operations(network, lambda: network(x, torch.tensor(0.5), c))
    with torch.no_grad():
        padded = ops.activation_pad(inputs, None, fused.padding)
        result = convolution(padded)
        work = 2 * result.numel() * convolution.weight[0].numel()
        benchmark.group = f"U-Net ends, {name} ({torch.get_num_threads()} threads)"
        benchmark.extra_info["of the network's operations"] = work / whole
        benchmark(convolution, padded)
