"""Networks against the same formulas, written out from their weights, in float64."""

import math

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sda_fast import ACTIVATIONS, ResMLP, TimeEmbedding, UNet
from sda_fast.nn import LayerNorm, ModResidualBlock, ResidualBlock, broadcast


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(x: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3)])
def test_time_embedding(shape: tuple[int, ...]):
    embedding = TimeEmbedding(12)
    t = torch.rand(shape)
    y = embedding(t)
    assert y.shape == (*shape, 12)
    close(y, oracles.time_embedding(dict(embedding.state_dict()), t, "").reshape(y.shape))


def test_time_embedding_state_dict():
    embedding = TimeEmbedding(12)
    assert shapes(embedding) == {
        "freqs": (16,),
        "0.weight": (256, 32),
        "0.bias": (256,),
        "2.weight": (12, 256),
        "2.bias": (12,),
    }
    close(embedding.freqs, torch.tensor([math.pi * n for n in range(1, 17)]))


@pytest.mark.parametrize(("shape", "dim"), [((5,), -1), ((4, 7), -1), ((2, 6, 3, 3), -3)])
def test_layer_norm(shape: tuple[int, ...], dim: int):
    """The variance is the unbiased one, and 1e-5 is added to it."""
    x = 1e-2 * torch.randn(shape) + 3  # the term matters
    y = LayerNorm(dim)(x)

    moved_x, moved_y = x.movedim(dim, -1), y.movedim(dim, -1)
    n = moved_x.shape[-1]
    for row, result in zip(moved_x.reshape(-1, n), moved_y.reshape(-1, n), strict=True):
        mean = math.fsum(row.tolist()) / n
        variance = math.fsum((v - mean) ** 2 for v in row.tolist()) / (n - 1)
        close(result, (row - mean) / math.sqrt(variance + 1e-5))

    assert not list(LayerNorm(dim).parameters())


def test_residual_blocks():
    x, y = torch.randn(2, 3), torch.randn(2, 5)
    inner, project = nn.Linear(3, 3), nn.Linear(5, 3)
    close(ResidualBlock(inner, nn.Tanh())(x), x + torch.tanh(inner(x)))
    close(ModResidualBlock(project, inner)(x, y), x + inner(x + project(y)))


ELEMENTWISE = {"ReLU": F.relu, "ELU": F.elu, "GELU": F.gelu, "SELU": F.selu, "SiLU": F.silu}


@pytest.mark.parametrize("activation", list(ELEMENTWISE))
def test_activations(activation: str):
    x = torch.randn(100)
    close(ACTIVATIONS[activation]()(x), ELEMENTWISE[activation](x))


def test_activation_names():
    assert set(ACTIVATIONS) == set(ELEMENTWISE)


@pytest.mark.parametrize("hidden", [(8,), (8, 8), (8, 6, 6), (7, 3), ()])
@pytest.mark.parametrize("activation", ["ReLU", "SiLU"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_res_mlp(hidden: tuple[int, ...], activation: str, batch: tuple[int, ...]):
    """Layouts with and without changes of width, at the start, between and at the end."""
    network = ResMLP(7, 3, hidden_features=hidden, activation=ACTIVATIONS[activation])
    x = torch.randn(*batch, 7)
    literal = oracles.res_mlp(
        dict(network.state_dict()), x, (7, *hidden, 3), ELEMENTWISE[activation]
    )
    assert literal.shape == (*batch, 3)
    close(network(x), literal)


def test_res_mlp_state_dict():
    network = ResMLP(7, 3, hidden_features=[8, 8])
    assert shapes(network) == {
        "0.weight": (8, 7),
        "0.bias": (8,),
        "1.1.weight": (8, 8),
        "1.1.bias": (8,),
        "1.3.weight": (8, 8),
        "1.3.bias": (8,),
        "2.1.weight": (8, 8),
        "2.1.bias": (8,),
        "2.3.weight": (8, 8),
        "2.3.bias": (8,),
        "3.weight": (3, 8),
        "3.bias": (3,),
        "4.1.weight": (3, 3),
        "4.1.bias": (3,),
        "4.3.weight": (3, 3),
        "4.3.bias": (3,),
    }
    assert (network.in_features, network.out_features) == (7, 3)


def test_res_mlp_defaults():
    network = ResMLP(2, 2)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim == 2] == (
        [(64, 2)] + 4 * [(64, 64)] + [(2, 64)] + 2 * [(2, 2)]
    )
    assert isinstance(network[1][2], nn.ReLU)
    assert not any(name.endswith("bias") for name in ResMLP(2, 2, bias=False).state_dict())


@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize(
    ("spatial", "size", "channels", "blocks", "stride", "kernel"),
    [
        (1, (16,), (4, 6, 8), (1, 2, 1), 2, 3),
        (1, (8,), (5,), (2,), 2, 5),
        (1, (18,), (4, 6), (1, 1), 3, 3),
        (2, (8, 12), (4, 6), (2, 1), 2, 3),
        (2, (8, 8), (3, 4, 5), (1, 1, 1), 2, 5),
        (3, (4, 4, 6), (3, 4), (1, 1), 2, 3),
    ],
)
def test_unet(
    spatial: int,
    size: tuple[int, ...],
    channels: tuple[int, ...],
    blocks: tuple[int, ...],
    stride: int,
    kernel: int,
    circular: bool,
):
    network = UNet(
        3,
        2,
        5,
        hidden_channels=channels,
        hidden_blocks=blocks,
        kernel_size=kernel,
        stride=stride,
        activation=nn.SiLU,
        spatial=spatial,
        padding_mode="circular" if circular else "zeros",
    )
    x, y = torch.randn(2, 3, *size), torch.randn(2, 5)
    literal = oracles.unet(
        dict(network.state_dict()), x, y, blocks, F.silu, stride=stride, circular=circular
    )
    assert literal.shape == (2, 2, *size)
    close(network(x, y), literal)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_circular_unet_is_equivariant(spatial: int):
    """On a periodic domain a shift by the total stride passes through."""
    network = UNet(
        2,
        2,
        3,
        hidden_channels=(3, 4),
        hidden_blocks=(1, 1),
        spatial=spatial,
        padding_mode="circular",
    )
    x, y = torch.randn(1, 2, *(8,) * spatial), torch.randn(1, 3)
    shift, dims = (2,) * spatial, tuple(range(2, 2 + spatial))
    close(network(x.roll(shift, dims), y), network(x, y).roll(shift, dims))


def test_unet_state_dict():
    network = UNet(3, 2, 5, hidden_channels=(4, 6), hidden_blocks=(1, 2), spatial=2)
    block = {
        "project.0.weight": ("{c}", 5),
        "project.0.bias": ("{c}",),
        "residue.1.weight": ("{c}", "{c}", 3, 3),
        "residue.1.bias": ("{c}",),
        "residue.3.weight": ("{c}", "{c}", 3, 3),
        "residue.3.bias": ("{c}",),
    }

    def blocks(name: str, c: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.{key}": tuple(c if n == "{c}" else n for n in shape)
            for key, shape in block.items()
        }

    assert shapes(network) == {
        "heads.0.weight": (4, 3, 3, 3),
        "heads.0.bias": (4,),
        "heads.1.0.weight": (6, 4, 3, 3),
        "heads.1.0.bias": (6,),
        "tails.0.2.weight": (4, 6, 3, 3),
        "tails.0.2.bias": (4,),
        "tails.1.weight": (2, 4, 3, 3),
        "tails.1.bias": (2,),
        **blocks("descent.0.0", 4),
        **blocks("descent.1.0", 6),
        **blocks("descent.1.1", 6),
        **blocks("ascent.0.0", 6),
        **blocks("ascent.0.1", 6),
        **blocks("ascent.1.0", 4),
    }


def test_unet_defaults():
    network = UNet(3, 3, 5)
    assert network.spatial == 2
    assert [len(blocks) for blocks in network.descent] == [2, 3, 5]
    assert [len(blocks) for blocks in network.ascent] == [5, 3, 2]
    assert shapes(network)["descent.2.4.residue.3.weight"] == (128, 128, 3, 3)
    assert network.heads[1][0].stride == (2, 2)
    assert isinstance(network.descent[0][0].residue[2], nn.ReLU)


@pytest.mark.parametrize("spatial", [0, 4])
def test_unet_dimensions(spatial: int):
    with pytest.raises(ValueError, match=f"spatial must be 1, 2 or 3, got {spatial}"):
        UNet(1, 1, 1, spatial=spatial)


def test_broadcast():
    x, y, z = torch.randn(3, 1, 5), torch.randn(4, 2), torch.randn(6)
    results = broadcast(x, y, z, ignore=1)
    assert [tuple(r.shape) for r in results] == [(3, 4, 5), (3, 4, 2), (3, 4, 6)] or [
        tuple(r.shape) for r in results
    ] == [(3, 1, 5), (3, 4, 2), (3, 1, 6)]
