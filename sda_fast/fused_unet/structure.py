"""Recognises a U-Net: its convolutions, norms and projections."""

__all__ = ["Structure", "plane"]

from collections.abc import Iterable
from typing import Any

from torch import nn

from .._calls import hooked, replaced
from ..fused import UnfusableError, activation_number, check_weights, expect
from ..nn import LayerNorm, ModResidualBlock, UNet

MOST_CHANNELS = 2048  # as in csrc/kernels/padded.h

Layer = nn.Conv1d | nn.Conv2d


def plane(sizes: Iterable[int], fill: int = 1) -> tuple[int, int]:
    """Returns the sizes of two dimensions: lines are fields of one row."""
    sizes = tuple(sizes)
    return (fill, *sizes) if len(sizes) == 1 else sizes  # type: ignore[return-value]


class Structure:
    """The convolutions, norms and projections of a U-Net, checked one by one.

    Raises:
        UnfusableError: A part is not what a U-Net has there.
    """

    def __init__(self, network: UNet):
        expect(network, UNet, "network")
        if any(hooked(module) or replaced(type(module)) for module in network.modules()):
            raise UnfusableError("a part of it has hooks, or another forward")
        if network.spatial not in (1, 2):
            raise UnfusableError(
                f"its fields have {network.spatial} spatial dimensions, not 1 or 2"
            )

        self.spatial: int = network.spatial
        self.projections: list[nn.Linear] = []
        self.activations: set[int] = set()
        self.columns = 0

        heads, tails = list(network.heads), list(network.tails)
        self.first = self._convolution(heads[0], None)
        self.heads = [self.first] + [self._down(head) for head in heads[1:]]
        self.descent = [self._blocks(level) for level in network.descent]
        self.ascent = [self._blocks(level) for level in network.ascent]
        tails_up, last = tails[:-1], tails[-1]
        up = [self._up(tail) for tail in tails_up]
        self.norms = [eps for eps, _, _ in up]
        self.upsample = [factor for _, factor, _ in up]
        self.tails = [tail for *_, tail in up] + [self._convolution(last, self.first)]

        self.around = plane((k // 2 for k in self.first.kernel_size), 0)
        self.circular = self.first.padding_mode == "circular"

        depth = len(self.heads)
        if not len(self.tails) == len(self.descent) == len(self.ascent) == depth:
            raise UnfusableError("its levels are not as many on the way down as on the way up")
        if any(s != 1 for s in (*self.first.stride, *self.tails[-1].stride)):
            raise UnfusableError("its first or its last convolution has a stride")
        strides = [plane(head.stride) for head in self.heads[1:]]
        if strides[::-1] != self.upsample:
            raise UnfusableError("it does not upsample by the strides that it downsamples by")
        if not self.projections:
            raise UnfusableError("it has no blocks")
        if len(self.activations) > 1:
            raise UnfusableError("its activations are not all the same")

    def _convolution(self, module: Any, like: Layer | None) -> Layer:
        kind = (nn.Conv1d, nn.Conv2d)[self.spatial - 1]
        convolution: Layer = expect(module, kind, "layer")
        size, mode = convolution.kernel_size, convolution.padding_mode
        check_weights(convolution)
        if mode not in ("circular", "zeros"):
            raise UnfusableError(f"its padding is of mode {mode}")
        if any(k % 2 == 0 for k in size) or convolution.padding != tuple(k // 2 for k in size):
            raise UnfusableError(f"a kernel of size {size} is padded by {convolution.padding}")
        if any(d != 1 for d in convolution.dilation) or convolution.groups != 1:
            raise UnfusableError("a convolution has dilation or groups")
        if max(convolution.in_channels, convolution.out_channels) > MOST_CHANNELS:
            raise UnfusableError(f"it has more than {MOST_CHANNELS} channels")
        if like is not None and (size, mode) != (like.kernel_size, like.padding_mode):
            raise UnfusableError("its convolutions are not all of one size and padding")
        return convolution

    def _parts(self, module: Any, count: int, kind: type[nn.Module] = nn.Sequential) -> list[Any]:
        parts = list(expect(module, kind, "layer"))
        if len(parts) != count:
            raise UnfusableError(f"a layer has {len(parts)} parts, not {count}")
        return parts

    def _down(self, module: Any) -> Layer:
        (convolution,) = self._parts(module, 1)
        return self._convolution(convolution, self.first)

    def _up(self, module: Any) -> tuple[float, tuple[int, int], Layer]:
        norm, upsample, convolution = self._parts(module, 3)
        expect(upsample, nn.Upsample, "layer")
        factor = upsample.scale_factor
        factor = tuple(factor) if isinstance(factor, tuple) else (factor,) * self.spatial
        if upsample.mode != "nearest" or upsample.size is not None:
            raise UnfusableError("it does not upsample to the nearest")
        if any(f is None or f != int(f) for f in factor):
            raise UnfusableError(f"it upsamples by {factor}")
        convolution = self._convolution(convolution, self.first)
        if any(s != 1 for s in convolution.stride):
            raise UnfusableError("a convolution after upsampling has a stride")
        return self._norm(norm), plane(int(f) for f in factor), convolution

    def _norm(self, module: Any) -> float:
        norm = expect(module, LayerNorm, "norm")
        if norm.dim != -(self.spatial + 1):
            raise UnfusableError(f"its norm is over dimension {norm.dim}, not over channels")
        return float(norm.eps)

    def _blocks(self, level: Any) -> list[tuple[Layer, Layer, float, slice]]:
        return [self._block(block) for block in expect(level, nn.ModuleList, "level")]

    def _block(self, module: Any) -> tuple[Layer, Layer, float, slice]:
        block = expect(module, ModResidualBlock, "block")
        project, unflatten = self._parts(block.project, 2)
        norm, before, activation, after = self._parts(block.residue, 4)
        before = self._convolution(before, self.first)
        after = self._convolution(after, self.first)
        channels = before.in_channels
        widths = {before.out_channels, after.in_channels, after.out_channels, channels}
        if any(s != 1 for s in (*before.stride, *after.stride)) or len(widths) > 1:
            raise UnfusableError("a block changes the size or the channels of its input")

        expect(project, nn.Linear, "projection")
        expect(unflatten, nn.Unflatten, "projection")
        shape = tuple(unflatten.unflattened_size)
        single = (1,) * self.spatial
        check_weights(project)
        if project.bias is None or shape != (channels, *single) or unflatten.dim != -1:
            raise UnfusableError("a projection is not one number for each channel")

        self.projections.append(project)
        self.activations.add(activation_number(activation))
        self.columns += channels
        return before, after, self._norm(norm), slice(self.columns - channels, self.columns)
