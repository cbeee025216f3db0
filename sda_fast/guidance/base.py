r"""What every guidance module does with what its likelihood says.

The likelihood depends on the noisy trajectory through the denoised one alone,
:math:`\hat x = (x - \sigma \epsilon_\phi(x)) / \mu`. With its gradient there, the cotangent
:math:`g = \nabla_{\hat x} \log p(y \mid \hat x)`, and the Jacobian :math:`J` of
:math:`\epsilon_\phi`,

.. math:: \nabla_x \log p(y \mid x) = \frac{g - \sigma J^\top g}{\mu}

so that a module has to give :math:`g` only, and the sampler combines the pieces
:math:`(\epsilon_\phi, g, J^\top g)` with its step in one pass.
"""

__all__ = [
    "Guidance",
    "Level",
    "Pieces",
    "Vjp",
    "by_autograd",
    "context_for",
    "in_pieces",
    "linearise",
]

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from .._autocast import exact, widened
from .._calls import own, stands_for_call
from ..reference import widen
from ..score import others_code

Level = float | Tensor  # a number, or a tensor () where a step is captured once for all times
Vjp = Callable[[Tensor], Tensor]


class Pieces(NamedTuple):
    """The posterior's noise estimate in pieces, which :func:`sda_fast.ops.guide` combines: the
    prior's, the gradient g, and its product with the Jacobian unless that is left out."""

    eps: Tensor
    direct: Tensor
    through: Tensor | None = None


def context_for(eps: Any, c: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns what is passed to a noise estimator beside states and time: the context, be it None,
    or nothing where there is none and the estimator takes two arguments."""
    if c is not None:
        return (c,)
    try:
        inspect.signature(getattr(eps, "forward", eps)).bind(None, None, None)
    except TypeError:
        return ()
    except ValueError:  # no signature to be had
        pass
    return (None,)


def linearise(eps: Any, x: Tensor, t: Tensor, *context: Tensor | None) -> tuple[Tensor, Vjp]:
    """Evaluates a noise estimator, and returns its vector-Jacobian product there.

    Arguments:
        eps: The estimator. One that has a method `linearise` which stands for calls of it is asked
            for both, any other is differentiated by autograd.
        x: Noisy trajectories, with shape (B, *event).
        t: The time, with shape ().
        context: The context, if any is passed.

    Returns:
        The estimate, with shape (B, *event), in memory of its own, and a function from v of that
        shape to J^T v.
    """
    both = own(eps, "linearise")
    if both is not None:
        result: tuple[Tensor, Vjp] = both(x, t, *context)
        return result
    estimate, vjp = by_autograd(
        "eps", lambda x: widened(eps(x, t, *context), x), x, constant=torch.zeros_like
    )
    return estimate.clone(), vjp


def by_autograd(
    name: str, f: Callable[[Tensor], Tensor], x: Tensor, constant: Vjp | None = None
) -> tuple[Tensor, Vjp]:
    """Evaluates a function, and keeps torch's graph for its vector-Jacobian products; `constant`
    is what those are if it does not depend on x, which else is an error."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = f(x.clone())  # which it may change in place
        if torch.compiler.is_compiling() and isinstance(y, Tensor):
            y = y.clone()  # a view of what is not returned is beyond torch's compiler

    def vjp(cotangent: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
        return gradient

    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(y).__name__}")
    if y.requires_grad:
        return y.detach(), vjp
    if constant is None:
        raise ValueError(
            f"{name} must be differentiable, but {name}(x) does not depend on x for torch"
        )
    return y, constant


def _detached(_: Tensor) -> Tensor:
    raise RuntimeError("a likelihood that needs the network's Jacobian cannot be detached from it")


class Guidance(nn.Module):
    r"""A noise estimator of the posterior, from a prior's and a likelihood.

    A subclass gives :meth:`cotangent`.

    Arguments:
        sde: The noise process of the prior: `eps(x, t, c)`, `mu(t)` and `sigma(t)`.
        detach: Whether to leave the Jacobian of the network out of the gradient.
    """

    def __init__(self, sde: Any, detach: bool = False):
        super().__init__()
        self.sde = sde
        self.detach = detach

    def cotangent(self, x: Tensor, mu: Level, sigma: Level, vjp: Vjp) -> Tensor:
        r"""Returns the gradient of :math:`\log p(y \mid \hat x)`.

        Arguments:
            x: The denoised trajectories :math:`\hat x`, with shape (B, *event).
            mu: The level :math:`\mu(t)` of the signal.
            sigma: The level :math:`\sigma(t)` of the noise.
            vjp: The vector-Jacobian product of the network's noise estimate.
        """
        raise NotImplementedError

    def at_once(self, x: Tensor, *context: Tensor | None) -> int:
        """Returns how many samples to guide at once: as many as their network is fastest for, or
        all where some cannot be guided without the others."""
        best = own(self.sde.eps, "samples_at_once")
        number = len(x) if best is None else max(best(x, *context), 1)
        if number >= len(x):
            return max(len(x), 1)
        return number if self.separable(x[: max(number, 2)]) else len(x)

    def separable(self, x: Tensor) -> bool:
        """Says whether some samples of a batch can be guided without the others.

        Arguments:
            x: Some samples, at least two, with shape (b, *event).
        """
        return True

    def pieces(
        self, x: Tensor, t: Tensor, mu: Level, sigma: Level, *context: Tensor | None
    ) -> Pieces:
        """Evaluates the posterior's noise estimate, in pieces.

        Arguments:
            x: Noisy trajectories, with shape (B, *event).
            t: The time, with shape ().
            mu: The level of the signal at that time.
            sigma: The level of the noise at that time.
            context: The context, if any is passed.
        """
        vjp: Vjp
        with others_code(self.sde.eps):
            if self.detach:
                eps, vjp = widened(self.sde.eps(x.clone(), t, *context), x).clone(), _detached
            else:
                eps, vjp = linearise(self.sde.eps, x, t, *context)
        with exact(x), others_code():
            direct = self.cotangent(ops.denoise(x, eps, mu, sigma), mu, sigma, vjp)
        with others_code(self.sde.eps):
            return Pieces(eps, direct, None if self.detach else vjp(direct))

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """Maps noisy trajectories (B, *event), a time () and context to noise (B, *event)."""
        levels_at = widen(t)  # rounded to a half type near 0, levels lose all their digits
        mu, sigma = float(self.sde.mu(levels_at)), float(self.sde.sigma(levels_at))
        context = context_for(self.sde.eps, c)
        with torch.no_grad():
            parts = [
                ops.guide(*self.pieces(part, t, mu, sigma, *context), mu, sigma)
                for part in x.split(self.at_once(x, *context))
            ]
        return torch.cat(parts)


def in_pieces(estimator: Any) -> bool:
    """Says whether an estimator can be evaluated by :meth:`Guidance.pieces`: a guidance module
    whose forward is that of this package."""
    return isinstance(estimator, Guidance) and stands_for_call(estimator, "pieces")
