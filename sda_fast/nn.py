r"""Neural networks of the paper: time embedding, residual MLP and U-Net.

Module and parameter names are those of the reference package, so that a `state_dict` loads either
way.
"""

__all__ = [
    "ACTIVATIONS",
    "LayerNorm",
    "ModResidualBlock",
    "ResMLP",
    "ResidualBlock",
    "TimeEmbedding",
    "UNet",
    "broadcast",
]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "SELU": nn.SELU,
    "SiLU": nn.SiLU,
}


def broadcast(*tensors: Tensor, ignore: int) -> list[Tensor]:
    """Broadcasts all dimensions of tensors but the last `ignore` ones."""
    leading = torch.broadcast_shapes(*(x.shape[: x.ndim - ignore] for x in tensors))
    return [x.expand(*leading, *x.shape[x.ndim - ignore :]) for x in tensors]


class TimeEmbedding(nn.Sequential):
    r"""Embeds the diffusion time, Linear(SiLU(Linear(cos(pi n t), sin(pi n t)))), n = 1..16.

    Arguments:
        features: The number of embedding features.
    """

    freqs: Tensor

    def __init__(self, features: int):
        super().__init__(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, features))
        self.register_buffer("freqs", torch.pi * torch.arange(1, 17))

    def forward(self, t: Tensor) -> Tensor:
        """Maps times of shape (*) to embeddings of shape (*, features)."""
        phase = t[..., None] * self.freqs
        return super().forward(torch.cat((phase.cos(), phase.sin()), dim=-1))


class LayerNorm(nn.Module):
    r"""Standardises along a dimension, :math:`(x - E[x]) / \sqrt{V[x] + \epsilon}`.

    The variance is the unbiased one and there is no affine map.

    References:
        | Layer Normalization (Lei Ba et al., 2016)
        | https://arxiv.org/abs/1607.06450

    Arguments:
        dim: The dimension to standardise.
        eps: A numerical stability term.
    """

    def __init__(self, dim: int = -1, eps: float = 1e-5):
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps a tensor to one of the same shape."""
        variance, mean = torch.var_mean(x, dim=self.dim, unbiased=True, keepdim=True)
        return (x - mean) / torch.sqrt(variance + self.eps)


class ResidualBlock(nn.Sequential):
    """Adds to its input what a sequence of modules makes of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps a tensor to one of the same shape."""
        return x + super().forward(x)


class ModResidualBlock(nn.Module):
    """A residual block whose input is shifted by a projection of modulating features.

    Arguments:
        project: The module that maps the modulating features to a shift.
        residue: The module that maps the shifted input to the residue.
    """

    def __init__(self, project: nn.Module, residue: nn.Module):
        super().__init__()
        self.project = project
        self.residue = residue

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps an input of shape (B, C, *) and modulating features (B, M) to (B, C, *)."""
        return x + self.residue(x + self.project(y))


class ResMLP(nn.Sequential):
    """A residual multi-layer perceptron: where the width changes a linear map, then a block.

    Arguments:
        in_features: The number of input features.
        out_features: The number of output features.
        hidden_features: The numbers of hidden features.
        activation: The constructor of the activation function.
        kwargs: Keyword arguments passed to :class:`torch.nn.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.ReLU,
        **kwargs: Any,
    ):
        layers: list[nn.Module] = []
        width = in_features

        for features in (*hidden_features, out_features):
            if features != width:
                layers.append(nn.Linear(width, features, **kwargs))
            layers.append(
                ResidualBlock(
                    LayerNorm(),
                    nn.Linear(features, features, **kwargs),
                    activation(),
                    nn.Linear(features, features, **kwargs),
                )
            )
            width = features

        super().__init__(*layers)

        self.in_features = in_features
        self.out_features = out_features


class UNet(nn.Module):
    """A U-Net of modulated residual blocks.

    References:
        | U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)
        | https://arxiv.org/abs/1505.04597

    Arguments:
        in_channels: The number of input channels.
        out_channels: The number of output channels.
        mod_features: The number of modulating features.
        hidden_channels: The number of channels at each depth.
        hidden_blocks: The number of blocks at each depth, descending and again ascending.
        kernel_size: The size of the convolution kernels.
        stride: The stride of the downsampling convolutions.
        activation: The constructor of the activation function.
        spatial: The number of spatial dimensions, 1, 2 or 3.
        kwargs: Keyword arguments passed to the convolutions, for example `padding_mode`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mod_features: int,
        hidden_channels: Sequence[int] = (32, 64, 128),
        hidden_blocks: Sequence[int] = (2, 3, 5),
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
        spatial: int = 2,
        **kwargs: Any,
    ):
        super().__init__()

        if spatial not in (1, 2, 3):
            raise ValueError(f"spatial must be 1, 2 or 3, got {spatial}")

        convolution: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
        size = [kernel_size] * spatial if isinstance(kernel_size, int) else list(kernel_size)
        scale = [stride] * spatial if isinstance(stride, int) else list(stride)
        kwargs |= {"kernel_size": size, "padding": [k // 2 for k in size]}

        def block(channels: int) -> nn.Module:
            return ModResidualBlock(
                project=nn.Sequential(
                    nn.Linear(mod_features, channels),
                    nn.Unflatten(-1, (channels, *(1,) * spatial)),
                ),
                residue=nn.Sequential(
                    LayerNorm(-(spatial + 1)),
                    convolution(channels, channels, **kwargs),
                    activation(),
                    convolution(channels, channels, **kwargs),
                ),
            )

        def blocks(channels: int, count: int) -> nn.Module:
            return nn.ModuleList(block(channels) for _ in range(count))

        def down(shallow: int, deep: int) -> nn.Module:
            return nn.Sequential(convolution(shallow, deep, stride=scale, **kwargs))

        def up(deep: int, shallow: int) -> nn.Module:
            return nn.Sequential(
                LayerNorm(-(spatial + 1)),
                nn.Upsample(scale_factor=tuple(scale), mode="nearest"),
                convolution(deep, shallow, **kwargs),
            )

        shallow, deep = hidden_channels[:-1], hidden_channels[1:]
        first = convolution(in_channels, hidden_channels[0], **kwargs)
        last = convolution(hidden_channels[0], out_channels, **kwargs)
        counts = list(zip(hidden_channels, hidden_blocks, strict=True))

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.spatial = spatial

        self.heads = nn.ModuleList([first, *map(down, shallow, deep)])
        self.tails = nn.ModuleList([last, *map(up, deep, shallow)][::-1])
        self.descent = nn.ModuleList(blocks(c, n) for c, n in counts)
        self.ascent = nn.ModuleList(blocks(c, n) for c, n in reversed(counts))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps an input (B, in_channels, *) and modulating features (B, mod_features) to
        (B, out_channels, *)."""
        skips: list[Tensor] = []

        for head, blocks in zip(self.heads, self.descent, strict=True):
            x = head(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, y)
            skips.append(x)

        skips.pop()

        for blocks, tail in zip(self.ascent, self.tails, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, y)
            x = tail(x)
            if skips:
                x = x + skips.pop()

        return x
