r"""Weak-constraint four-dimensional variational assimilation: the most probable trajectory.

.. math:: \hat x_{1:L} = \arg \min_x \; - \log p(x_1) - \sum_i \log p(x_{i+1} \mid x_i)
    - \sum_i \log p(y_i \mid x_i)

is sought by L-BFGS in float64, the gradient being torch's. "Weak" says that the dynamics bind only
as tightly as their own noise: every state is unknown, not the first alone. For a linear-Gaussian
chain the minimum is the smoother's mean; for others it may be one of several, the one downhill of
where the search began. It needs SciPy.

References:
    | Accounting for an imperfect model in 4D-Var (Trémolet, 2006)
    | https://doi.org/10.1256/qj.05.224
"""

__all__ = ["Analysis", "four_d_var"]

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._arguments import floating


class Analysis(NamedTuple):
    """The result of a variational assimilation.

    Arguments:
        x: The trajectory, with shape (L, *state), of the type of the first guess.
        cost: The negative log-posterior, but for log p(y), at the first guess and after each
            iteration, in nats.
        gradient: The largest element of the gradient at the end, in nats by unit of the state.
        converged: Whether the search ended at a minimum.
    """

    x: Tensor
    cost: list[float]
    gradient: float
    converged: bool


def four_d_var(
    chain: Any,
    observation: Any,
    x: Tensor,
    log_first: Callable[[Tensor], Tensor] | None = None,
    *,
    iterations: int = 1000,
    tolerance: float = 1e-6,
    memory: int = 30,
) -> Analysis:
    r"""Finds the trajectory of the highest posterior density.

    Arguments:
        chain: The system, with a differentiable method `log_prob(x1, x2)`, from states
            (L - 1, *state) to (L - 1).
        observation: What was observed, an :class:`Observation`, or any object with a
            differentiable method `total_log_likelihood(x)`, from trajectories (L, *state) to ().
        x: The first guess, with shape (L, *state).
        log_first: The log-density :math:`\log p(x_1)` of the first state, the background, from
            (*state) to (). By default flat.
        iterations: The most iterations.
        tolerance: The search ends where no element of the gradient exceeds it.
        memory: The number of corrections that L-BFGS keeps.

    Returns:
        The trajectory, the history of its cost and whether the search converged; where it did not
        there is a warning.

    Raises:
        ValueError: The first guess is not finite, or an argument is out of its range.
        FloatingPointError: The cost is not finite at the first guess.
    """
    if not bool(x.isfinite().all()) or x.ndim < 1 or len(x) < 1:
        raise ValueError(f"x must be a finite trajectory, but has shape {tuple(x.shape)} or is not")
    for name, value in (("iterations", iterations), ("tolerance", tolerance), ("memory", memory)):
        if not value > 0:
            raise ValueError(f"{name} must be positive, but is {value}")
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("4D-Var needs SciPy: pip install 'sda-fast[evaluation]'") from error

    def negative_log_posterior(states: Tensor) -> Tensor:
        J = states.new_zeros(())
        if log_first is not None:
            J = J - log_first(states[0])
        if len(states) > 1:
            J = J - chain.log_prob(states[:-1], states[1:]).sum()
        return J - observation.total_log_likelihood(states)

    def cost(v: np.ndarray) -> tuple[float, np.ndarray]:
        states = torch.from_numpy(v).reshape(x.shape).to(x.device).requires_grad_()
        with torch.enable_grad():
            J = negative_log_posterior(states)
            (gradient,) = torch.autograd.grad(J, states)
        return float(J.detach()), gradient.cpu().numpy().ravel()

    first = x.detach().double().cpu().numpy().ravel()
    history = [cost(first)[0]]
    if not np.isfinite(history[0]):
        raise FloatingPointError(f"the cost of the first guess is {history[0]}")

    result = minimize(
        cost,
        first,
        jac=True,
        method="L-BFGS-B",
        callback=lambda intermediate_result: history.append(float(intermediate_result.fun)),
        options={
            "maxiter": iterations,
            "maxfun": 20 * iterations,
            "maxcor": memory,
            "gtol": tolerance,
            "ftol": 0.0,
        },
    )
    gradient = float(np.abs(result.jac).max())
    # rounding may stop the search just short of the tolerance
    converged = bool(result.success) or gradient <= 10 * tolerance
    if not converged:
        warnings.warn(
            f"4D-Var did not converge in {result.nit} iterations: an element of the gradient is "
            f"{gradient:.1e}, with a tolerance of {tolerance:.1e} ({result.message})",
            RuntimeWarning,
            stacklevel=2,
        )

    states = torch.from_numpy(result.x).reshape(x.shape).to(floating(x))
    return Analysis(states, history, gradient, converged)
