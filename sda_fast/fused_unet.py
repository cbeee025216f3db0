r"""U-Nets whose steps between convolutions are native operators.

A :class:`FusedUNet` is made from a :class:`sda_fast.nn.UNet`, and uses its parameters. Convolutions
stay with the library (oneDNN); what is between two of them (modulation, LayerNorm, activation,
circular padding) is one pass that writes what the next one reads, channels last. A block,

.. math:: x + W_2 * f(W_1 * n + b_1) + b_2, \quad n = \text{norm}(x + \text{shift}),

is then four steps: :func:`sda_fast.ops.norm_pad`, a convolution,
:func:`sda_fast.ops.activation_pad` and a convolution that adds to x where it lies. The adjoint of
a convolution whose stride is 1 is a convolution too, by the same kernel flipped and transposed, so
that the way back has the same form; of the way forward it needs n, its scale, and what f was
applied to.

Its precision follows :func:`torch.set_float32_matmul_precision`: "highest" and "high" are float32
throughout; "medium" keeps fields and kernels in bfloat16 where the processor multiplies such, and
sums products, variances and activations in float32.
"""

__all__ = ["FusedUNet"]

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _native, ops
from .fused import UnfusableError, activation_number, expect, hooked
from .nn import LayerNorm, ModResidualBlock, UNet

MOST_CHANNELS = 2048  # as in csrc/fields.h


class Convolution:
    """A convolution of fields that are padded already, and its adjoint.

    Arguments:
        weight: The kernel, with shape (out, in, h, w).
        bias: The bias, with shape (out), or None.
        stride: The stride.
        padding: The zeros to pad with, which cost the library nothing.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ):
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = bias
        self.stride, self.padding = list(stride), list(padding)
        self._packed: Tensor | None = None
        self._adjoint: Convolution | None = None

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """Maps (B, in, H, W), channels last, to (B, out, H', W'), or adds that onto a tensor."""
        if not _has_onednn(x):
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            return y if onto is None else onto.add_(y)

        unit = [1, 1]
        if self._packed is None:
            self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
                self.weight.to_mkldnn(), self.padding, self.stride, unit, 1, list(x.shape)
            )
        kernel = (self._packed, self.bias, self.padding, self.stride, unit, 1)
        operators = torch.ops.mkldnn
        if onto is None:
            y = operators._convolution_pointwise.default(x, *kernel, "none", [], None)
        else:
            y = operators._convolution_pointwise_.binary(
                onto, x, *kernel, "add", None, None, [], None
            )
        return y

    @property
    def adjoint(self) -> "Convolution":
        """The adjoint, of cotangents padded as x is: by the kernel flipped and transposed."""
        if self._adjoint is None:
            weight = self.weight.flip(2, 3).transpose(0, 1)
            self._adjoint = Convolution(weight, None, (1, 1), tuple(self.padding))
        return self._adjoint

    def strided_adjoint(self, g: Tensor, size: list[int], circular: tuple[int, int]) -> Tensor:
        """The adjoint for any stride: maps cotangents, not padded, to those of x of a size."""
        full = [n + 2 * (p + z) for n, p, z in zip(size, circular, self.padding, strict=True)]
        short = [
            f - (s * (n - 1) + k)
            for f, s, n, k in zip(
                full, self.stride, g.shape[2:], self.weight.shape[2:], strict=True
            )
        ]
        y = F.conv_transpose2d(g, self.weight, None, self.stride, self.padding, short)
        return ops.fold(y, circular)


def _has_onednn(x: Tensor) -> bool:
    """Says whether convolutions are given to oneDNN as it packs them."""
    return x.is_cpu and torch.backends.mkldnn.is_available()


class _Block(NamedTuple):
    """A modulated residual block: its convolutions, its norm and the place of its shift."""

    first: Convolution
    second: Convolution
    eps: float
    shift: slice


class _Kept(NamedTuple):
    """What the way back needs of a norm, and of the activation after it."""

    normed: Tensor
    scale: Tensor
    before: Tensor | None = None


class Weights:
    """The weights of a U-Net as :class:`FusedUNet` reads them."""

    def __init__(self, network: "_Structure", dtype: torch.dtype, zeros: tuple[int, int]):
        def convolution(module: nn.Conv2d) -> Convolution:
            # copies: a gradient is that of the weights that were evaluated, whatever came after
            weight = module.weight.detach().to(dtype, copy=True)
            bias = None if module.bias is None else module.bias.detach().to(dtype, copy=True)
            return Convolution(weight, bias, module.stride, zeros)

        def blocks(level: list[Any]) -> list[_Block]:
            return [
                _Block(convolution(first), convolution(second), eps, shift)
                for first, second, eps, shift in level
            ]

        self.heads = [convolution(module) for module in network.heads]
        self.tails = [convolution(module) for module in network.tails]
        self.descent = [blocks(level) for level in network.descent]
        self.ascent = [blocks(level) for level in network.ascent]
        self.projection = torch.cat([p.weight.detach() for p in network.projections])
        self.shift = torch.cat([p.bias.detach() for p in network.projections])


# Of each U-Net and each precision the versions of its parameters, and its weights made from those.
_weights: WeakKeyDictionary[nn.Module, dict[torch.dtype, tuple[Any, Weights]]]
_weights = WeakKeyDictionary()


class _Structure:
    """The convolutions, norms and projections of a U-Net, checked one by one.

    Raises:
        UnfusableError: A part is not what a U-Net has there.
    """

    def __init__(self, network: UNet):
        expect(network, UNet, "network")
        if any(hooked(module) for module in network.modules()):
            raise UnfusableError("a part of it has hooks")
        if network.spatial != 2:
            raise UnfusableError(f"its fields have {network.spatial} spatial dimension(s), not 2")

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

        depth = len(self.heads)
        if not len(self.tails) == len(self.descent) == len(self.ascent) == depth:
            raise UnfusableError("its levels are not as many on the way down as on the way up")
        if self.first.stride != (1, 1) or self.tails[-1].stride != (1, 1):
            raise UnfusableError("its first or its last convolution has a stride")
        strides = [head.stride for head in self.heads[1:]]
        if strides[::-1] != self.upsample:
            raise UnfusableError("it does not upsample by the strides that it downsamples by")
        if len(self.activations) > 1:
            raise UnfusableError("its activations are not all the same")

    def _convolution(self, module: Any, like: nn.Conv2d | None) -> nn.Conv2d:
        convolution: nn.Conv2d = expect(module, nn.Conv2d, "layer")
        size, mode = convolution.kernel_size, convolution.padding_mode
        if convolution.weight.dtype != torch.float32:
            raise UnfusableError(f"its weights are {convolution.weight.dtype}, not torch.float32")
        if mode not in ("circular", "zeros"):
            raise UnfusableError(f"its padding is of mode {mode}")
        if any(k % 2 == 0 for k in size) or convolution.padding != tuple(k // 2 for k in size):
            raise UnfusableError(f"a kernel of size {size} is padded by {convolution.padding}")
        if convolution.dilation != (1, 1) or convolution.groups != 1:
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

    def _down(self, module: Any) -> nn.Conv2d:
        (convolution,) = self._parts(module, 1)
        return self._convolution(convolution, self.first)

    def _up(self, module: Any) -> tuple[float, tuple[int, ...], nn.Conv2d]:
        norm, upsample, convolution = self._parts(module, 3)
        expect(upsample, nn.Upsample, "layer")
        factor = upsample.scale_factor
        factor = tuple(factor) if isinstance(factor, tuple) else (factor,) * 2
        if upsample.mode != "nearest" or upsample.size is not None:
            raise UnfusableError("it does not upsample to the nearest")
        if any(f is None or f != int(f) for f in factor):
            raise UnfusableError(f"it upsamples by {factor}")
        convolution = self._convolution(convolution, self.first)
        if convolution.stride != (1, 1):
            raise UnfusableError("a convolution after upsampling has a stride")
        return self._norm(norm), tuple(int(f) for f in factor), convolution

    def _norm(self, module: Any) -> float:
        norm = expect(module, LayerNorm, "norm")
        if norm.dim != -3:
            raise UnfusableError(f"its norm is over dimension {norm.dim}, not over channels")
        return float(norm.eps)

    def _blocks(self, level: Any) -> list[tuple[nn.Conv2d, nn.Conv2d, float, slice]]:
        return [self._block(block) for block in expect(level, nn.ModuleList, "level")]

    def _block(self, module: Any) -> tuple[nn.Conv2d, nn.Conv2d, float, slice]:
        block = expect(module, ModResidualBlock, "block")
        project, unflatten = self._parts(block.project, 2)
        norm, before, activation, after = self._parts(block.residue, 4)
        before = self._convolution(before, self.first)
        after = self._convolution(after, self.first)
        channels = before.in_channels
        widths = {before.out_channels, after.in_channels, after.out_channels, channels}
        if (before.stride, after.stride) != ((1, 1), (1, 1)) or len(widths) > 1:
            raise UnfusableError("a block changes the size or the channels of its input")

        expect(project, nn.Linear, "projection")
        expect(unflatten, nn.Unflatten, "projection")
        shape = tuple(unflatten.unflattened_size)
        if project.bias is None or shape != (channels, 1, 1) or unflatten.dim != -1:
            raise UnfusableError("a projection is not one number for each channel")

        self.projections.append(project)
        self.activations.add(activation_number(activation))
        self.columns += channels
        return before, after, self._norm(norm), slice(self.columns - channels, self.columns)


class FusedUNet:
    """A U-Net whose steps between convolutions are native operators, and its vector-Jacobian
    product.

    Arguments:
        network: The U-Net, a :class:`sda_fast.nn.UNet` of two spatial dimensions.

    Raises:
        UnfusableError: The network does not have the structure of a U-Net.
    """

    def __init__(self, network: UNet):
        structure = _Structure(network)
        self.bfloat16 = _native.has_bfloat16() and torch.get_float32_matmul_precision() == "medium"
        self.dtype = torch.bfloat16 if self.bfloat16 else torch.float32
        self.channels = structure.first.in_channels
        self.features = {p.in_features for p in structure.projections}
        self.activation = next(iter(structure.activations), None)
        self.norms, self.upsample = structure.norms, structure.upsample

        # circular padding is ours; of zeros the library needs no copy
        height, width = structure.first.kernel_size
        around, nothing = (height // 2, width // 2), (0, 0)
        circular = structure.first.padding_mode == "circular"
        self.padding = around if circular else nothing
        self.grid = [1, 1]
        for factor in self.upsample:
            self.grid = [n * f for n, f in zip(self.grid, factor, strict=True)]

        parameters = list(network.parameters())
        versions = [(id(p), p.data_ptr(), p._version) for p in parameters]
        known = _weights.setdefault(network, {})
        if self.dtype not in known or known[self.dtype][0] != versions:
            with torch.no_grad():
                weights = Weights(structure, self.dtype, nothing if circular else around)
            known[self.dtype] = (versions, weights)
        self.weights = known[self.dtype][1]

    def unserved(self, x: Tensor, t: Tensor | None = None) -> str | None:
        """Returns why the operators cannot serve fields (B, C, H, W) at times, or None if they
        can."""
        if x.dtype != torch.float32 or x.ndim != 4 or x.device.type != "cpu":
            return "the fused U-Net serves fields of float32 in two dimensions on CPU"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on"
        sizes = list(zip(x.shape[2:], self.grid, self.padding, strict=True))
        if any(n % g != 0 or n // g < max(p, 1) for n, g, p in sizes):
            return f"a grid of {tuple(x.shape[2:])} cells does not divide by {tuple(self.grid)}"
        if t is not None and t.requires_grad and torch.is_grad_enabled():
            return "the fused U-Net has no gradient of time"
        return None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps fields (B, C, H, W) and modulating features (1 or B, M) to fields. Differentiable
        with respect to x, once."""
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _Differentiable.apply(x, y, self)  # type: ignore[no-untyped-call]
            return result
        with torch.no_grad():
            return self._evaluate(x, y, None)

    def linearise(self, x: Tensor, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Evaluates the network, and returns its vector-Jacobian product with respect to x too."""
        kept: list[_Kept] = []
        with torch.no_grad():
            result = self._evaluate(x, y, kept)

        def vjp(cotangent: Tensor) -> Tensor:
            with torch.no_grad():
                return self._vjp(cotangent, kept)

        return result, vjp

    def _evaluate(self, x: Tensor, y: Tensor, kept: list[_Kept] | None) -> Tensor:
        weights, padding = self.weights, self.padding
        shifts = torch.addmm(weights.shift, y, weights.projection.T)
        skips: list[Tensor] = []

        x = x.to(self.dtype)
        for head, blocks in zip(weights.heads, weights.descent, strict=True):
            x = head(ops.activation_pad(x, None, padding))
            for block in blocks:
                x = self._block(block, x, shifts, kept)
            skips.append(x)

        skips.pop()

        for blocks, tail, eps, upsample in zip(
            weights.ascent, weights.tails[:-1], self.norms, self.upsample, strict=False
        ):
            for block in blocks:
                x = self._block(block, x, shifts, kept)
            padded, scale = ops.norm_pad(x, None, padding, upsample, eps)
            if kept is not None:
                kept.append(_Kept(self._inner(padded, upsample), scale))
            x = tail(padded, onto=skips.pop())

        for block in weights.ascent[-1]:
            x = self._block(block, x, shifts, kept)
        x = weights.tails[-1](ops.activation_pad(x, None, padding))

        return x.to(torch.float32)

    def _block(self, block: _Block, x: Tensor, shifts: Tensor, kept: list[_Kept] | None) -> Tensor:
        """Adds to x, where it lies, what a block makes of it."""
        padded, scale = ops.norm_pad(x, shifts[:, block.shift], self.padding, (1, 1), block.eps)
        before = block.first(padded)
        if kept is not None:
            kept.append(_Kept(self._inner(padded), scale, before))
        return block.second(ops.activation_pad(before, self.activation, self.padding), onto=x)

    def _inner(self, padded: Tensor, step: tuple[int, ...] = (1, 1)) -> Tensor:
        """Returns what the padding is around, of repeated points the first."""
        p, q = self.padding
        height, width = padded.shape[2] - p, padded.shape[3] - q
        return padded[:, :, p : height : step[0], q : width : step[1]]

    def _vjp(self, g: Tensor, kept: list[_Kept]) -> Tensor:
        weights, padding = self.weights, self.padding
        norms = reversed(kept)
        skips: list[Tensor] = []

        # every cotangent is padded, for the adjoint that reads it
        g = weights.tails[-1].adjoint(ops.activation_pad(g.to(self.dtype), None, padding))
        g = ops.activation_pad(g, None, padding)
        for block in reversed(weights.ascent[-1]):
            g = self._block_vjp(block, g, next(norms))

        levels = zip(weights.ascent[:-1], weights.tails[:-1], self.upsample, strict=True)
        for blocks, tail, upsample in reversed(list(levels)):
            skips.append(self._inner(g))
            norm = next(norms)
            g = ops.norm_pad_vjp(tail.adjoint(g), *norm[:2], None, padding, upsample)
            for block in reversed(blocks):
                g = self._block_vjp(block, g, next(norms))

        for blocks in reversed(weights.descent[1:]):
            for block in reversed(blocks):
                g = self._block_vjp(block, g, next(norms))
            skip = skips.pop()
            head = weights.heads[len(skips) + 1]
            g = head.strided_adjoint(self._inner(g), list(skip.shape[2:]), padding)
            g = ops.activation_pad(g.add_(skip), None, padding)

        for block in reversed(weights.descent[0]):
            g = self._block_vjp(block, g, next(norms))

        return weights.heads[0].adjoint(g).to(torch.float32)

    def _block_vjp(self, block: _Block, g: Tensor, kept: _Kept) -> Tensor:
        """Maps the padded cotangent of a block's result to that of its input."""
        assert kept.before is not None
        after = block.second.adjoint(g)
        inside = ops.activation_pad_vjp(after, kept.before, self.activation, self.padding)
        inside = block.first.adjoint(inside)
        return ops.norm_pad_vjp(inside, kept.normed, kept.scale, self._inner(g), self.padding)


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
