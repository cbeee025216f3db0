r"""The operators: gather and compose windows, denoise, guide, take predictor and Langevin steps,
evaluate networks, observe states.

Each function but :func:`mlp_score`, which is native only, computes natively where the native
library can serve its tensors, and otherwise by the function of the same name in
:mod:`sda_fast.reference`, whose numbers it matches to rounding. :func:`backend` forces one or the
other, :func:`unserved` says which it would be and why.

The functions that return a tensor may be compiled, and are differentiable twice and more; but
`mlp_score`, `norm_pad` and `activation_pad` once, and vector-Jacobian products not.

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023)
    | https://arxiv.org/abs/2306.10574
"""

__all__ = [
    "activation_pad",
    "activation_pad_vjp",
    "backend",
    "below_autograd",
    "block_mean",
    "block_mean_adjoint",
    "compose",
    "compose_denoise",
    "denoise",
    "fold",
    "gather",
    "guide",
    "guide_",
    "guide_langevin_",
    "guide_predictor_",
    "is_native",
    "kept_rows",
    "langevin",
    "langevin_",
    "mlp_bytes",
    "mlp_score",
    "mlp_score_linearised",
    "multistep",
    "multistep_",
    "native",
    "norm_pad",
    "norm_pad_vjp",
    "philox_normal_",
    "predictor",
    "predictor_",
    "residual",
    "sparse_map",
    "subsample",
    "subsample_adjoint",
    "too_large",
    "transpose",
    "transformed",
    "unserved",
    "winograd",
    "winograd_",
    "winograd_kernel",
]

from ._dispatch import backend, below_autograd, is_native, native, transformed, unserved
from .fields import activation_pad, activation_pad_vjp, fold, norm_pad, norm_pad_vjp
from .guided import guide, guide_, guide_langevin_, guide_predictor_
from .networks import kept_rows, mlp_bytes, mlp_score, mlp_score_linearised, too_large
from .noise import langevin, langevin_, philox_normal_
from .observations import (
    block_mean,
    block_mean_adjoint,
    residual,
    sparse_map,
    subsample,
    subsample_adjoint,
    transpose,
)
from .steps import denoise, multistep, multistep_, predictor, predictor_
from .windows import compose, compose_denoise, gather
from .winograd import winograd, winograd_, winograd_kernel
