r"""The posterior's noise estimate, and the steps taken with it.

The likelihood :math:`p(y \mid x(t))` depends on :math:`x(t)` through :math:`\hat{x} = (x(t) -
\sigma \epsilon(x(t), t)) / \mu`. With :math:`g = \nabla_{\hat{x}} \log p(y \mid x(t))` and the
Jacobian :math:`J` of :math:`\epsilon`,

.. math::
    \nabla_{x(t)} \log p(y \mid x(t)) & = (g - \sigma J^\top g) / \mu \\
    \epsilon_\text{post} & = \epsilon - \sigma \, \nabla_{x(t)} \log p(y \mid x(t))

References:
    | Score-based Data Assimilation (Rozet & Louppe, 2023), section 3.2 and algorithm 3
    | https://arxiv.org/abs/2306.10574
"""

__all__ = ["guide", "guide_", "guide_langevin_", "guide_predictor_"]

from functools import partial
from typing import Any

from torch import Tensor

from .. import reference
from ._batch import check_alike, in_place, join
from ._dispatch import call, fake_elementwise, fake_in_place, is_native, native, register
from .noise import check_stream


def guide(eps: Tensor, direct: Tensor, through: Tensor | None, mu: float, sigma: float) -> Tensor:
    r"""Makes a noise estimate the posterior's (Rozet & Louppe 2023, section 3.2).

    .. math:: \epsilon_\text{post} = \epsilon - \frac{\sigma}{\mu} (g - \sigma J^\top g)

    Arguments:
        eps: The prior's estimate :math:`\epsilon(x(t), t)`, with any shape, float32, float64,
            bfloat16 or float16; the arithmetic of the half types is float32, rounded once.
        direct: The gradient :math:`g` of the log-likelihood with respect to :math:`\hat{x}`, of the
            same shape and dtype.
        through: The product :math:`J^\top g` with the Jacobian of :math:`\epsilon`, of the same
            shape and dtype, or None to leave the Jacobian out.
        mu: The signal level :math:`\mu(t)`, above 0.
        sigma: The noise level :math:`\sigma(t)`.

    Returns:
        The posterior's estimate, of the same shape, and in the same order in memory where `eps` is
        without gaps.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ, or `mu` is not above 0.
    """
    if is_native(eps, direct, through):
        return call(native.guide, eps, direct, through, mu, sigma)
    return reference.guide(eps, direct, through, mu, sigma)


def guide_(eps: Tensor, direct: Tensor, through: Tensor | None, mu: float, sigma: float) -> None:
    """Makes the posterior's estimate of :func:`guide` in place, of an `eps` of any strides."""
    if is_native(eps, direct, through, in_place=True):
        native.guide_(eps, direct, through, mu, sigma)
    else:
        reference.guide_(eps, direct, through, mu, sigma)


def guide_predictor_(
    x: Tensor,
    eps: Tensor,
    direct: Tensor,
    through: Tensor | None,
    mu: float,
    sigma: float,
    r: float,
    b: float,
    past: list[Tensor],
    past_b: list[float],
) -> None:
    r"""Makes `eps` the posterior's estimate and takes the predictor's step with it, in one pass.

    .. math::
        \epsilon & \gets \epsilon - \frac{\sigma}{\mu} (g - \sigma J^\top g) \\
        x & \gets r \, x + b \, \epsilon + \sum_j b_j \, \epsilon_j

    The same as :func:`guide_` and then :func:`multistep_`, or without past estimates
    :func:`predictor_`. What is only read is read as it was before.

    Arguments:
        x: The state :math:`x(t)`, with any shape and strides, float32, float64, bfloat16 or
            float16; the arithmetic of the half types is float32.
        eps: The prior's estimate :math:`\epsilon(x(t), t)`, of the same shape and dtype, in memory
            of its own.
        direct: The gradient :math:`g`, as for :func:`guide`.
        through: The product :math:`J^\top g`, as for :func:`guide`, or None.
        mu: The signal level :math:`\mu(t)`, above 0.
        sigma: The noise level :math:`\sigma(t)`.
        r: The ratio :math:`\mu(t') / \mu(t)`.
        b: The weight of the new estimate.
        past: At most 2 estimates :math:`\epsilon_j` of earlier steps, of the same shape and dtype.
        past_b: Their weights :math:`b_j`.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ, `x` and `eps` share memory, `mu` is not
            above 0, or there are not as many weights as past estimates.
    """
    if is_native(x, eps, direct, through, *past, in_place=True):
        native.guide_predictor_(x, eps, direct, through, mu, sigma, r, b, past, past_b)
    else:
        reference.guide_predictor_(x, eps, direct, through, mu, sigma, r, b, past, past_b)


def guide_langevin_(
    x: Tensor,
    eps: Tensor,
    direct: Tensor,
    through: Tensor | None,
    mu: float,
    sigma: float,
    tau: float,
    *,
    seed: int,
    step: int,
    correction: int = 0,
    first_sample: int = 0,
    batch_dims: int = 1,
) -> None:
    r"""Makes `eps` the posterior's estimate and takes a Langevin correction with it.

    The same as :func:`guide_` and then :func:`langevin_`, with one pass less over `eps`. What is
    only read is read as it was before.

    Arguments:
        x: The states, with shape :math:`(B, *)` and any strides, float32, float64, bfloat16 or
            float16; the arithmetic of the half types is float32.
        eps: The prior's estimate :math:`\epsilon(x(t), t)`, of the same shape and dtype, in memory
            of its own.
        direct: The gradient :math:`g`, as for :func:`guide`.
        through: The product :math:`J^\top g`, as for :func:`guide`, or None.
        mu: The signal level :math:`\mu(t)`, above 0.
        sigma: The noise level :math:`\sigma(t)`, of the guidance and of the correction.
        tau: The amplitude :math:`\tau` of the correction.
        seed: The key of the random numbers, as for :func:`langevin`.
        step: The number of the predictor step before this correction, below :math:`2^{32}`.
        correction: The number of this correction among those of its step, below :math:`2^{16}`.
        first_sample: The number of the batch's first sample.
        batch_dims: The number of leading dimensions that count samples, as for :func:`langevin`.

    Raises:
        RuntimeError: If shapes, dtypes or devices differ, `x` and `eps` share memory, or `mu` is
            not above 0.
        ValueError: If a number of the stream or `batch_dims` is out of range.
    """
    stream = check_stream(seed, step, correction, first_sample)
    if batch_dims != 1:
        for name, t in (("eps", eps), ("direct", direct), ("through", through)):
            if t is not None:
                check_alike(name, t, x)
        direct = join("direct", direct, batch_dims)
        through = None if through is None else join("through", through, batch_dims)

        def corrected(x: Tensor, eps: Tensor) -> None:
            guide_langevin_(x, eps, direct, through, mu, sigma, tau, **stream)

        in_place(
            "x", x, batch_dims, lambda x: in_place("eps", eps, batch_dims, partial(corrected, x))
        )
    elif is_native(x, eps, direct, through, in_place=True):
        native.guide_langevin_(x, eps, direct, through, mu, sigma, tau, *stream.values())
    else:
        reference.guide_langevin_(x, eps, direct, through, mu, sigma, tau, **stream)


def _setup_guide(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, through, ctx.mu, ctx.sigma = inputs
    ctx.detached = through is None


def _backward_guide(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    scale = ctx.sigma / ctx.mu
    through = None if ctx.detached else ctx.sigma * scale * grad
    return grad, -scale * grad, through, None, None


register("guide", fake_elementwise, _setup_guide, _backward_guide)
register("guide_", fake_in_place)
register("guide_predictor_", fake_in_place)
register("guide_langevin_", fake_in_place)
