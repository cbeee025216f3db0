"""A fused U-Net: the way forward, and the way back."""

__all__ = ["FusedUNet"]

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _autocast
from ..nn import UNet
from ..ops import below_autograd, native
from .convolution import choose
from .structure import Structure, plane
from .weights import Block, Precision, weights_of


class _Kept(NamedTuple):
    """What the way back needs of a norm, and of the activation after it."""

    normed: Tensor
    scale: Tensor
    before: Tensor | None = None


class FusedUNet:
    """A U-Net whose steps between convolutions are native operators, and its vector-Jacobian
    product.

    Arguments:
        network: The U-Net, a :class:`sda_fast.nn.UNet` of one or two spatial dimensions. Lines are
            evaluated as fields of one row.

    Raises:
        UnfusableError: The network does not have the structure of a U-Net.
    """

    def __init__(self, network: UNet):
        structure = Structure(network)
        self.device = structure.first.weight.device
        self.spatial = structure.spatial
        self.channels = structure.first.in_channels
        self.features = {p.in_features for p in structure.projections}
        self.activation = next(iter(structure.activations), None)
        self.norms, self.upsample = structure.norms, structure.upsample
        self.padding = structure.around if structure.circular else (0, 0)
        self.grid = [1, 1]
        for factor in self.upsample:
            self.grid = [n * f for n, f in zip(self.grid, factor, strict=True)]

        self.precision = Precision.on(self.device)
        self.dtype = self.precision.dtype
        convolve, self.without_onednn = choose(self.device)
        self.weights = weights_of(network, structure, self.precision, convolve)

    def __str__(self) -> str:
        told = f"its U-Net fused, in {self.precision}"
        if self.without_onednn is not None:
            told += f", with torch's own convolutions: {self.without_onednn}"
        return told

    def packed_bytes(self, gradient: bool) -> int:
        """Returns about how much memory its weights take beside the network's own."""
        return self.weights.packed_bytes(gradient)

    def unserved(self, x: Tensor, t: Tensor | None = None) -> str | None:
        """Returns why the operators cannot serve fields (B, C, H, W), or lines (B, C, W), at times,
        or None if they can."""
        ndim = 2 + self.spatial
        if x.dtype != torch.float32 or x.ndim != ndim or x.device.type not in ("cpu", "cuda"):
            return "the fused U-Net serves fields of float32 of its dimensions on CPU and CUDA"
        if x.device != self.device:
            return f"its parameters are on {self.device}, and the fields on {x.device}"
        if _autocast.is_on(x):
            return "autocast is on"
        sizes = list(zip(plane(x.shape[2:]), self.grid, self.padding, strict=True))
        if any(n % g != 0 for n, g, _ in sizes):
            step = tuple(self.grid[-self.spatial :])
            return f"a grid of {tuple(x.shape[2:])} cells does not divide by {step}"
        if any(n // g < max(p, 1) for n, g, p in sizes):
            return f"a grid of {tuple(x.shape[2:])} cells is, coarsened, narrower than the padding"
        if t is not None and t.requires_grad and torch.is_grad_enabled():
            return "the fused U-Net has no gradient of time"
        return None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps fields (B, C, H, W), or lines (B, C, W), and modulating features (1 or B, M) to the
        same. Differentiable with respect to x, once."""
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _Differentiable.apply(x, y, self)  # type: ignore[no-untyped-call]
            return result
        return self._run(self._evaluate, x, y, None)

    def linearise(self, x: Tensor, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Evaluates the network, and returns its vector-Jacobian product with respect to x too."""
        kept: list[_Kept] = []
        result = self._run(self._evaluate, x, y, kept)
        return result, lambda cotangent: self._run(self._vjp, cotangent, kept)

    def _run(self, way: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
        """Goes one way with fields: lines are those of one row."""
        with torch.no_grad():
            x = x.unsqueeze(2) if self.spatial == 1 else x
            with below_autograd():
                x = way(x, *args)
            return x.squeeze(2) if self.spatial == 1 else x

    def _evaluate(self, x: Tensor, y: Tensor, kept: list[_Kept] | None) -> Tensor:
        weights, padding = self.weights, self.padding
        shift = torch.addmm(weights.shift, y, weights.projection.T)
        shifts = iter(shift.split(weights.widths, 1))  # of the blocks, in their order
        skips: list[Tensor] = []

        x = x.to(self.dtype)
        for head, offset, blocks in zip(weights.heads, weights.down, weights.descent, strict=True):
            x = head(native.activation_pad(x, None, padding, offset))
            for block in blocks:
                x = self._block(block, x, next(shifts), kept)
            skips.append(x)

        skips.pop()

        for blocks, tail, offset, eps, upsample in zip(
            weights.ascent, weights.tails, weights.up, self.norms, self.upsample, strict=False
        ):
            for block in blocks:
                x = self._block(block, x, next(shifts), kept)
            left = None if offset is None else offset[None]
            padded, scale = native.norm_pad(x, left, padding, upsample, eps)
            if kept is not None:
                kept.append(_Kept(self._inner(padded, upsample), scale))
            x = tail(padded, onto=skips.pop())

        for block in weights.ascent[-1]:
            x = self._block(block, x, next(shifts), kept)
        last = weights.tails[-1]
        x = last(native.activation_pad(x, None, padding, weights.up[-1])).to(torch.float32)

        return x if last.left is None else x.add_(last.left[:, None, None])

    def _block(self, block: Block, x: Tensor, shift: Tensor, kept: list[_Kept] | None) -> Tensor:
        """Adds to x, where it lies, what a block makes of it."""
        padded, scale = native.norm_pad(x, shift, self.padding, (1, 1), block.eps)
        before = block.first(padded)
        if kept is not None:
            kept.append(_Kept(self._inner(padded), scale, before))
        active = native.activation_pad(before, self.activation, self.padding, block.first.left)
        return block.second(active, onto=x)

    def _inner(self, padded: Tensor, step: tuple[int, ...] = (1, 1)) -> Tensor:
        """Returns what the padding is around, of repeated points the first."""
        for dim, pad in zip((2, 3), self.padding, strict=True):
            if pad > 0:
                padded = padded.narrow(dim, pad, padded.shape[dim] - 2 * pad)
        return padded if step == (1, 1) else padded[:, :, :: step[0], :: step[1]]

    def _vjp(self, g: Tensor, kept: list[_Kept]) -> Tensor:
        weights, padding = self.weights, self.padding
        norms = reversed(kept)
        skips: list[Tensor] = []

        # every cotangent is padded, for the adjoint that reads it
        g = weights.tails[-1].adjoint(native.activation_pad(g.to(self.dtype), None, padding))
        g = native.activation_pad(g, None, padding)
        for block in reversed(weights.ascent[-1]):
            g = self._block_vjp(block, g, next(norms))

        levels = zip(weights.ascent[:-1], weights.tails[:-1], self.upsample, strict=True)
        for blocks, tail, upsample in reversed(list(levels)):
            skips.append(self._inner(g))
            norm = next(norms)
            g = native.norm_pad_vjp(tail.adjoint(g), *norm[:2], None, padding, upsample)
            for block in reversed(blocks):
                g = self._block_vjp(block, g, next(norms))

        for blocks in reversed(weights.descent[1:]):
            for block in reversed(blocks):
                g = self._block_vjp(block, g, next(norms))
            skip = skips.pop()
            head = weights.heads[len(skips) + 1]
            g = head.strided_adjoint(self._inner(g), list(skip.shape[2:]), padding)
            g = native.activation_pad(g.add_(skip), None, padding)

        for block in reversed(weights.descent[0]):
            g = self._block_vjp(block, g, next(norms))

        return weights.heads[0].adjoint(g).to(torch.float32)

    def _block_vjp(self, block: Block, g: Tensor, kept: _Kept) -> Tensor:
        """Maps the padded cotangent of a block's result to that of its input."""
        assert kept.before is not None
        after = block.second.adjoint(g)
        inside = native.activation_pad_vjp(
            after, kept.before, self.activation, self.padding, block.first.left
        )
        inside = block.first.adjoint(inside)
        return native.norm_pad_vjp(
            inside, kept.normed, kept.scale, self._inner(g), self.padding, (1, 1)
        )


class _Differentiable(torch.autograd.Function):
    """A fused U-Net, for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, network: FusedUNet) -> Tensor:
        result, ctx.vjp = network.linearise(x, y)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.vjp(g), None, None
