"""The weights of a U-Net as they are evaluated: renewed when its parameters change."""

__all__ = ["Block", "Precision", "Weights", "weights_of"]

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import _native
from .._kept import Versions, keeping
from .._precision import matmul_precision
from .convolution import Convolution
from .structure import Structure, plane


class Block(NamedTuple):
    """A modulated residual block: its convolutions, its norm and the place of its shift."""

    first: Convolution
    second: Convolution
    eps: float
    shift: slice


@dataclass(frozen=True)
class Precision:
    """What the weights of a U-Net are kept in, and how their products are rounded.

    Arguments:
        dtype: The type of fields and kernels.
        tf32: Whether factors of float32 are rounded to TF32.
    """

    dtype: torch.dtype = torch.float32
    tf32: bool = False

    @classmethod
    def on(cls, device: torch.device) -> "Precision":
        """Returns that of a device for the precision of products that is set."""
        precision = matmul_precision(device)
        if precision == "medium" and (device.type == "cuda" or _native.has_bfloat16()):
            return cls(torch.bfloat16)
        return cls(tf32=precision != "highest" and device.type == "cuda")

    def __str__(self) -> str:
        return "TF32" if self.tf32 else str(self.dtype).removeprefix("torch.")


class Weights:
    """The weights of a U-Net as :class:`FusedUNet` reads them.

    Arguments:
        network: The U-Net's structure.
        precision: What they are kept in.
        convolve: What convolves with them.
    """

    def __init__(self, network: Structure, precision: Precision, convolve: type[Convolution]):
        # circular padding is ours; of zeros the library needs no copy
        zeros = (0, 0) if network.circular else network.around

        def convolution(module: nn.Conv1d | nn.Conv2d) -> Convolution:
            # copies: a gradient is that of the weights that were evaluated, whatever came after
            weight = module.weight.detach().to(precision.dtype, copy=True)
            weight = weight.reshape(*weight.shape[:2], *plane(weight.shape[2:]))
            bias = None if module.bias is None else module.bias.detach().clone()
            return convolve(weight, bias, plane(module.stride), zeros, precision.tf32)

        def blocks(level: list[Any]) -> list[Block]:
            return [
                Block(convolution(first), convolution(second), eps, shift)
                for first, second, eps, shift in level
            ]

        self.heads = [convolution(module) for module in network.heads]
        self.tails = [convolution(module) for module in network.tails]
        self.descent = [blocks(level) for level in network.descent]
        self.ascent = [blocks(level) for level in network.ascent]
        self.projection = torch.cat([p.weight.detach() for p in network.projections])
        self.shift = torch.cat([p.bias.detach() for p in network.projections])
        self.widths = [p.out_features for p in network.projections]
        self._fold()

    def packed_bytes(self, gradient: bool) -> int:
        """Returns about how much memory they take, for the network alone or with its gradient."""
        blocks = [block for level in (*self.descent, *self.ascent) for block in level]
        layers = [*self.heads, *self.tails, *(c for b in blocks for c in (b.first, b.second))]
        return self.projection.nbytes + sum(layer.packed_bytes(gradient) for layer in layers)

    def _fold(self) -> None:
        """Adds up the biases that convolutions leave. The sum x of a level is kept without them:
        blocks have them in their shifts, what goes on to the next level has `down` or `up`."""
        offset: Tensor | None = None
        self.down: list[Tensor | None] = []  # of what heads read
        self.up: list[Tensor | None] = []  # of what is read at the ends of levels on the way up

        def follow(offset: Tensor | None, blocks: list[Block]) -> Tensor | None:
            for block in blocks:
                if offset is not None:
                    self.shift[block.shift] += offset
                offset = _sum(offset, block.second.left)
            return offset

        for head, blocks in zip(self.heads, self.descent, strict=True):
            self.down.append(offset)
            offset = follow(head.left, blocks)
        skips = self.down[1:]
        for blocks, tail in zip(self.ascent, self.tails, strict=True):
            offset = follow(offset, blocks)
            self.up.append(offset)
            offset = _sum(tail.left, skips.pop() if skips else None)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


Kind = tuple[Precision, type[Convolution]]

# Of each U-Net and each kind of weights what they were made of, in which version, and the weights.
_weights: WeakKeyDictionary[nn.Module, dict[Kind, tuple[Any, Weights]]]
_weights = WeakKeyDictionary()


def weights_of(
    network: nn.Module, structure: Structure, precision: Precision, convolve: type[Convolution]
) -> Weights:
    """Returns the weights of a U-Net, made anew if its parameters changed, or what else they are
    made of."""
    blocks = [block for level in (*structure.descent, *structure.ascent) for block in level]
    layers = [*structure.heads, *structure.tails, *structure.projections]
    layers += [convolution for first, second, *_ in blocks for convolution in (first, second)]
    tensors = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    versions = (
        structure.circular,
        structure.around,
        [getattr(layer, "stride", None) for layer in layers],
        [(eps, shift.start, shift.stop) for _, _, eps, shift in blocks],
        Versions(tensors),
    )
    known = _weights.setdefault(network, {})
    kind = (precision, convolve)
    kept = known.get(kind)  # looked up once: another thread may make its own
    if kept is None or kept[0] != versions:
        with keeping():
            kept = known[kind] = (versions, Weights(structure, precision, convolve))
    return kept[1]
