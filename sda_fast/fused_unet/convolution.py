"""Convolutions of fields that are padded already, by the library of each device.

On a CPU with oneDNN a kernel is packed once, by operators that torch keeps for its own compiler,
and a convolution adds its bias, and what it is to be added to, as it writes its result. So does
ours, which takes the place of those by 3 x 3 and 1 x 3 points in float32. Elsewhere, on CUDA and
where torch has no such operators, a convolution is torch's own, channels last: there a bias would
be one more pass over the result, and is left to the operator that reads it.
"""

__all__ = ["Convolution", "OneDNN", "Winograd", "choose", "missing", "without_onednn"]

from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import native


class Convolution:
    """A convolution by torch's own operator, and its adjoint.

    Arguments:
        weight: The kernel, with shape (out, in, h, w).
        bias: The bias, with shape (out) and in float32, or None: the result is without it.
        stride: The stride.
        padding: The zeros to pad with, which cost the library nothing.
        tf32: Whether CUDA may round factors of float32 to TF32.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        tf32: bool = False,
    ):
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.left = bias
        self.stride, self.padding = list(stride), list(padding)
        self.tf32 = tf32
        self._adjoint: Convolution | None = None

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """Maps (B, in, H, W), channels last, to (B, out, H', W'), or adds that onto a tensor."""
        y = self._torch(x)
        return y if onto is None else onto.add_(y)

    def _torch(self, x: Tensor, output_padding: list[int] | None = None) -> Tensor:
        """Convolves, or with an output padding transposes that: its precision is ours to say, not
        that of torch's global flags."""
        cudnn = torch.backends.cudnn
        return torch.ops.aten._convolution(
            x,
            self.weight,
            None,
            self.stride,
            self.padding,
            [1, 1],
            output_padding is not None,
            output_padding or [0, 0],
            1,
            cudnn.benchmark,
            True,  # sums in an order that is the same each time
            cudnn.enabled,
            self.tf32,
        )

    def packed_bytes(self, gradient: bool) -> int:
        """Returns how much memory it has of its own, with its adjoint or without."""
        return self.weight.nbytes * (2 if gradient else 1)

    @property
    def adjoint(self) -> "Convolution":
        """The adjoint, of cotangents padded as x is: by the kernel flipped and transposed."""
        if self._adjoint is None:
            weight = self.weight.flip(2, 3).transpose(0, 1)
            self._adjoint = type(self)(weight, None, (1, 1), tuple(self.padding), self.tf32)
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
        return ops.fold(self._torch(g, short), circular)


class OneDNN(Convolution):
    """A convolution on a CPU, its kernel packed for oneDNN. Its result is with the bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *options: Any):
        super().__init__(weight, None, *options)
        self.bias = None if bias is None else bias.to(weight.dtype)
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        unit = [1, 1]
        if self._packed is None:
            self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
                self.weight.to_mkldnn(), self.padding, self.stride, unit, 1, list(x.shape)
            )
        kernel = (self._packed, self.bias, self.padding, self.stride, unit, 1)
        operators = torch.ops.mkldnn
        if onto is None:
            return operators._convolution_pointwise.default(x, *kernel, "none", [], None)
        return operators._convolution_pointwise_.binary(
            onto, x, *kernel, "add", None, None, [], None
        )

    def packed_bytes(self, gradient: bool) -> int:
        return 2 * super().packed_bytes(gradient)


class Winograd(OneDNN):
    """One that takes a quarter of the multiplications, or of lines half, where it can and that is
    faster: by 3 x 3 or 1 x 3 points, without a stride, of float32 and of channels in multiples of
    16."""

    # Of fewer tiles than these such a kernel, four times as large, is read for longer than they are
    # multiplied; one of fewer channels stays in the cache.
    LEAST_TILES, SMALL_KERNEL = 8, 1 << 15

    def __init__(self, weight: Tensor, bias: Tensor | None, *options: Any):
        super().__init__(weight, bias, *options)
        outputs, inputs, *size = weight.shape
        whole = outputs % 16 == inputs % 16 == 0 and size in ([3, 3], [1, 3])
        self.possible = whole and self.stride == [1, 1] and weight.dtype == torch.float32
        self.height = size[0]
        self.small = outputs * inputs <= self.SMALL_KERNEL
        self._kernel: Tensor | None = None

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        if not (self.possible and self.pays(x)):
            return super().__call__(x, onto)
        if self._kernel is None:
            self._kernel = ops.winograd_kernel(self.weight)
        if onto is None:
            y: Tensor = native.winograd(x, self._kernel, self.bias, self.padding)
            return y
        native.winograd_(onto, x, self._kernel, self.bias, self.padding)
        return onto

    def packed_bytes(self, gradient: bool) -> int:
        if not self.possible:
            return super().packed_bytes(gradient)
        more = 4 if self.height == 3 else 2  # places of a tile for each point of a kernel
        return (1 + more) * Convolution.packed_bytes(self, gradient)

    def pays(self, x: Tensor) -> bool:
        """Says whether fields are large enough: of a tile of 4 x 4 points, or 4, all are
        computed."""
        (b, _, *size), (p, q) = x.shape, self.padding
        h, w = size[0] + 2 * p - self.height + 1, size[1] + 2 * q - 2
        down, fewer = (1, 2) if self.height == 1 else (4, 4)
        tiles = b * -(-h // down) * -(-w // 4)
        whole = 4 * down * tiles  # points
        return whole <= fewer * b * h * w and (self.small or tiles >= self.LEAST_TILES)


def choose(device: torch.device) -> tuple[type[Convolution], str | None]:
    """Returns what convolves on a device and, on a CPU, why neither oneDNN nor we do."""
    reason = without_onednn() if device.type == "cpu" else None
    return (Winograd if device.type == "cpu" and reason is None else Convolution), reason


def without_onednn() -> str | None:
    """Returns why convolutions on the CPU are not packed for oneDNN, or None if they are."""
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    return missing()


@cache
def missing() -> str | None:
    """Tries the operators, which torch does not promise to keep, on a convolution of ones."""
    x = torch.ones(1, 1, 3, 3)
    for onto in (None, torch.zeros(1, 1, 1, 1)):
        try:
            with torch.no_grad():
                y = OneDNN(torch.ones(1, 1, 3, 3), None, (1, 1), (0, 0))(x, onto)
        except (AttributeError, RuntimeError, TypeError) as error:
            return f"this torch lacks what packs a convolution ({type(error).__name__})"
        if y.item() != 9:
            return "this torch packs convolutions in another way"
    return None
