"""How a fused network's weights lie in memory: as its device's kernels load them."""

__all__ = ["Fragments", "Packing", "Panels"]

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Packing(ABC):
    """How weights are packed.

    Arguments:
        bfloat16: Whether the factors of products are rounded to bfloat16.
        tf32: Whether they are rounded to TF32.
    """

    bfloat16: bool = False
    tf32: bool = False

    multiple: ClassVar[int]

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """Packs a weight (out, in) into numbers (*) of float32, rounded ones in their bits."""

    def padded(self, bias: Tensor) -> Tensor:
        """Pads biases (*, out) with zeros."""
        missing = -bias.shape[-1] % self.multiple
        return pad(bias, (0, missing)) if missing else bias


@dataclass(frozen=True)
class Panels(Packing):
    """Panels (out / 8, in, 8) for the CPU, as in csrc/kernels/mlp_score.h: padded with zeros, or of
    pairs of inputs in bfloat16 (out / 8, in / 2, 8, 2), each pair in place of a float."""

    multiple = 8

    def matrix(self, weight: Tensor) -> Tensor:
        columns = weight.shape[1] % 2 if self.bfloat16 else 0
        weight = self.padded(pad(weight, (0, columns)).T).T.unflatten(0, (-1, 8))
        if self.bfloat16:
            pairs = weight.to(torch.bfloat16).unflatten(2, (-1, 2)).transpose(1, 2)
            return pairs.contiguous().view(torch.float32).flatten()
        return weight.transpose(1, 2).flatten()


@dataclass(frozen=True)
class Fragments(Packing):
    """Fragments of matrix instructions for CUDA, as in csrc/kernels/matrix.h: padded with zeros to
    multiples of 32, tiles of 16 outputs, steps of inputs, and what a lane multiplies at once."""

    multiple = 32

    def matrix(self, weight: Tensor) -> Tensor:
        weight = self.padded(self.padded(weight).T).T
        if not (self.bfloat16 or self.tf32):
            # tile, lane's row, its two outputs, step, inputs
            parts = weight.unflatten(1, (-1, 4)).unflatten(0, (-1, 8, 2))
            return parts.permute(0, 3, 2, 1, 4).flatten()

        # and of a step the lane's column, its two instructions, their two halves, inputs
        side = 2 if self.bfloat16 else 1
        parts = weight.unflatten(1, (-1, 4, 2, 2, side)).unflatten(0, (-1, 8, 2))
        parts = parts.permute(0, 3, 5, 1, 4, 6, 2, 7).contiguous()
        if self.bfloat16:
            return parts.to(torch.bfloat16).view(torch.float32).flatten()
        # to 10 bits of fraction, ties away from zero
        return ((parts.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).flatten()
