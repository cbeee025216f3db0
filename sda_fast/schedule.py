r"""Noise processes: how a trajectory is turned into noise, and the coefficients of the way back.

The perturbation kernel at diffusion time :math:`t \in [0, 1]` is

.. math:: p(x(t) \mid x) = N(\mu(t) x, \sigma(t)^2 I)

and a network estimates the noise, :math:`\epsilon_\phi(x(t), t) = -\sigma(t) \nabla \log p(x(t))`.
"""

__all__ = ["SubSubVPSDE", "SubVPSDE", "VPSDE", "adams_bashforth", "coefficients"]

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

SCHEDULES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "lin": lambda t, eta: 1 - (1 - eta) * t,
    "cos": lambda t, eta: torch.cos(math.acos(math.sqrt(eta)) * t) ** 2,
    "exp": lambda t, eta: torch.exp(math.log(eta) * t**2),
}


class VPSDE(nn.Module):
    r"""The noise process of the variance-preserving (VP) SDE.

    .. math:: \mu(t) = \alpha(t), \qquad \sigma(t)^2 = 1 - \alpha(t)^2 + \eta^2

    Arguments:
        eps: The noise estimator :math:`\epsilon_\phi(x, t, c)`.
        shape: The event shape.
        alpha: The choice of :math:`\alpha(t)`: "lin", "cos" or "exp".
        eta: A numerical stability term.
    """

    device: Tensor

    def __init__(self, eps: nn.Module, shape: Sequence[int], alpha: str = "cos", eta: float = 1e-3):
        super().__init__()

        if alpha not in SCHEDULES:
            raise ValueError(f"alpha must be one of {', '.join(SCHEDULES)}, got {alpha!r}")

        self.eps = eps
        self.shape = Size(shape)
        self.dims = tuple(range(-len(self.shape), 0))
        self.schedule = alpha
        self.eta = eta

        # a tensor that follows the module to its device, as in the reference package
        self.register_buffer("device", torch.zeros(()))

    def alpha(self, t: Tensor) -> Tensor:
        r"""Returns :math:`\alpha(t)`, of the shape of t."""
        return SCHEDULES[self.schedule](t, self.eta)

    def mu(self, t: Tensor) -> Tensor:
        r"""Returns the signal level :math:`\mu(t)`, of the shape of t."""
        return self.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns the noise level :math:`\sigma(t)`, of the shape of t."""
        return torch.sqrt(1 - self.alpha(t) ** 2 + self.eta**2)

    def forward(self, x: Tensor, t: Tensor, train: bool = False) -> Any:
        r"""Draws from the perturbation kernel :math:`p(x(t) \mid x)`.

        Arguments:
            x: The clean state, with shape (*, *event).
            t: The diffusion time, with shape (*).
            train: Whether to return the noise as well.

        Returns:
            The noisy state, and the noise if `train`.
        """
        t = t.reshape(*t.shape, *(1,) * len(self.shape))
        eps = torch.randn_like(x)
        x = self.mu(t) * x + self.sigma(t) * eps

        return (x, eps) if train else x

    def sample(
        self,
        shape: Sequence[int] = (),
        c: Tensor | None = None,
        steps: int | Sequence[float] | Tensor = 64,
        corrections: int | Sequence[int] | Callable[[float], int] = 0,
        tau: float | Sequence[float] | Callable[[float], float] = 1.0,
        **kwargs: Any,
    ) -> Tensor:
        """Draws samples: :func:`sda_fast.sample` of this process, which documents the arguments."""
        from .sampler import sample  # the sampler builds on this module

        return sample(self, shape, c, steps, corrections, tau, **kwargs)

    def loss(self, x: Tensor, c: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        r"""Returns the denoising loss :math:`E \| \epsilon_\phi(x(t), t, c) - \epsilon \|^2`.

        Arguments:
            x: A batch of clean states, with shape (B, *event).
            c: The context.
            w: The weights of the elements, broadcastable with x.
        """
        t = torch.rand(x.shape[0], dtype=x.dtype, device=x.device)
        x, eps = self.forward(x, t, train=True)
        error = (self.eps(x, t, c) - eps).square()

        return error.mean() if w is None else (error * w).mean() / w.mean()


class SubVPSDE(VPSDE):
    r"""The noise process of the sub-variance-preserving (sub-VP) SDE.

    .. math:: \mu(t) = \alpha(t), \qquad \sigma(t) = 1 - \alpha(t)^2 + \eta
    """

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns the noise level :math:`\sigma(t)`, of the shape of t."""
        return 1 - self.alpha(t) ** 2 + self.eta


class SubSubVPSDE(VPSDE):
    r"""The noise process of the sub-sub-variance-preserving SDE.

    .. math:: \mu(t) = \alpha(t), \qquad \sigma(t) = 1 - \alpha(t) + \eta
    """

    def sigma(self, t: Tensor) -> Tensor:
        r"""Returns the noise level :math:`\sigma(t)`, of the shape of t."""
        return 1 - self.alpha(t) + self.eta


def coefficients(sde: Any, times: Tensor) -> tuple[Tensor, Tensor]:
    r"""Computes :math:`\mu` and :math:`\sigma` in float64 on the host, once, before a loop.

    Arguments:
        sde: A noise process with methods `mu` and `sigma`.
        times: The diffusion times, with shape (N).
    """
    times = times.to(device="cpu", dtype=torch.float64)

    with torch.no_grad():
        return _levels(sde.mu, times, sde), _levels(sde.sigma, times, sde)


def _levels(level: Callable[[Tensor], Any], times: Tensor, sde: Any) -> Tensor:
    """Evaluates a level at all times at once or, where it is a function of one time, at each; on
    the device of the process if it has parameters there."""
    device = getattr(sde, "device", times.device)
    devices = dict.fromkeys((times.device, device.device if isinstance(device, Tensor) else device))

    failed = None
    for evaluate in (_at_once, _at_each):
        for place in devices:
            try:
                return evaluate(level, times.to(place)).cpu().double()
            except Exception as error:  # of a schedule of the user's own
                failed = failed or error
    raise failed or AssertionError


def _at_once(level: Callable[[Tensor], Any], times: Tensor) -> Tensor:
    levels = level(times)
    if not isinstance(levels, Tensor) or levels.shape != times.shape:
        raise TypeError(f"a level must have the shape of t, {tuple(times.shape)}, got {levels}")
    return levels


def _at_each(level: Callable[[Tensor], Any], times: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(level(t)).double().reshape(()) for t in times])


def adams_bashforth(sde: Any, times: Tensor, order: int, quadrature: int = 512) -> Tensor:
    r"""Computes the weights of an exponential Adams-Bashforth predictor.

    In terms of :math:`\lambda = \sigma / \mu` the probability flow is exactly

    .. math:: x(t') = \frac{\mu(t')}{\mu(t)} x(t) +
        \mu(t') \int_{\lambda(t)}^{\lambda(t')} \epsilon \, d\lambda

    With :math:`\epsilon` replaced by the polynomial in t through the last `order` estimates, the
    integral is :math:`(\lambda(t') - \lambda(t)) \sum_j w_j \epsilon_j`, and the weights sum to 1.
    Order 1 is the paper's exponential integrator. The first steps have the order that their
    history allows.

    References:
        | Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)
        | https://arxiv.org/abs/2204.13902

    Arguments:
        sde: A noise process with methods `mu` and `sigma`.
        times: The time grid, descending, with shape (N + 1).
        order: The number of estimates that a step uses.
        quadrature: The number of intervals of the midpoint rule.

    Returns:
        The weights, with shape (N, order), the newest estimate's first.
    """
    times = times.double()
    weights = torch.zeros(len(times) - 1, order, dtype=torch.float64)

    for n in range(len(weights)):
        nodes = times[max(0, n + 1 - order) : n + 1].flip(0)
        fine = torch.linspace(
            float(times[n]), float(times[n + 1]), quadrature + 1, dtype=torch.float64
        )
        mu, sigma = coefficients(sde, fine)
        measure = (sigma / mu).diff()
        middle = (fine[1:] + fine[:-1]) / 2

        for j, node in enumerate(nodes):
            others = torch.cat((nodes[:j], nodes[j + 1 :]))
            basis = ((middle[:, None] - others) / (node - others)).prod(dim=1)
            # where the noise level ends as it began, a step moves nothing
            total = measure.sum()
            weights[n, j] = (basis * measure).sum() / total if total != 0 else float(j == 0)

    return weights
