"""Prints the rounding errors of convolutions by 3 x 3 points, for docs/networks.md.

python -m benchmarks.rounding
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, silu, unfold

from sda_fast import ops
from sda_fast.fused_unet.convolution import OneDNN
from sda_fast.reference import winograd_maps

from .workloads import relative_error

CELLS, FIELDS = 16, 2


def filtered(x: Tensor, weight: Tensor, a: float, b: float) -> Tensor:
    """Convolves by the minimal filtering of the points 0, a, -a, b, -b and infinity, in the type
    of x but for its kernel, which is transformed in float64."""
    result, kernel, source = winograd_maps(a, b)
    u = (weight.double().flatten(2) @ torch.kron(kernel, kernel).T).to(x)
    d = unfold(x, 6, stride=4).unflatten(1, (x.shape[1], 36))  # (B, in, 36, tiles)
    v = torch.kron(source, source).to(x) @ d
    y = torch.kron(result, result).to(x) @ torch.einsum("ocp,bcpt->bopt", u, v)
    tiles = y.unflatten(3, (CELLS // 4, CELLS // 4)).unflatten(2, (4, 4))
    return tiles.permute(0, 1, 4, 2, 5, 3).reshape(*y.shape[:2], CELLS, CELLS)


def errors(channels: int) -> list[float]:
    """Returns the errors of the native operator, of other points, of oneDNN and of bfloat16."""
    x = silu(torch.randn(FIELDS, channels, CELLS + 2, CELLS + 2))
    x = x.contiguous(memory_format=torch.channels_last)
    bound = (9 * channels) ** -0.5
    weight = torch.empty(channels, channels, 3, 3).uniform_(-bound, bound)
    with ops.backend("native"):
        ours = ops.winograd(x, ops.winograd_kernel(weight))
    results = (
        ours,
        filtered(x, weight, 1, 2),
        OneDNN(weight, None, (1, 1), (0, 0))(x),
        conv2d(x.bfloat16(), weight.bfloat16()),
    )
    expected = conv2d(x.double(), weight.double())
    return [relative_error(result, expected) for result in results]


def main() -> None:
    torch.manual_seed(0)
    print("| channels | `winograd` | at ±1, ±2 | oneDNN | bfloat16 |")
    print("| --- | --- | --- | --- | --- |")
    for channels in (32, 96, 384):
        print(f"| {channels} |", " | ".join(f"{error:.1e}" for error in errors(channels)), "|")


if __name__ == "__main__":
    main()
