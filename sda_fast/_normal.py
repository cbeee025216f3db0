"""The normal distribution, far into its tails."""

__all__ = ["log_ndtr"]

import math
from typing import Any

import torch
from torch import Tensor


class _Hazard(torch.autograd.Function):
    r"""The derivative of :math:`\log \Phi`, :math:`h(z) = \phi(z) / \Phi(z)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return math.sqrt(2 / math.pi) / torch.special.erfcx(-z / math.sqrt(2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        z, h = ctx.saved_tensors
        return -gradient * h * (z + h)


class _LogNdtr(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.special.log_ndtr(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        return gradient * _Hazard.apply(z)


def log_ndtr(z: Tensor) -> Tensor:
    r"""Returns :math:`\log \Phi(z)` of the normal distribution function, float32 or float64.

    Far in the lower tail torch's gradient of it cancels. This one's is
    :math:`\sqrt{2 / \pi} / \operatorname{erfcx}(-z / \sqrt 2)`, which does not.
    """
    result: Tensor = _LogNdtr.apply(z)
    return result
