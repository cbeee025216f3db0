r"""The ensemble Kalman smoother.

An ensemble follows the chain. At each observed step every member's whole past is moved by the
Kalman gain of the ensemble's own covariances, towards an observation perturbed by noise of its own:

.. math:: x_{1:i}^n \gets x_{1:i}^n + C_{xy} (C_{yy} + \Sigma_y)^{-1}
    (y_i + e^n - A(x_i^n)), \qquad e^n \sim N(0, \Sigma_y)

As members grow in number this is exact for linear-Gaussian chains, and for no others: members are
moved along straight lines whatever the dynamics.

References:
    | An Ensemble Kalman Smoother for Nonlinear Dynamics (Evensen & van Leeuwen, 2000)
    | https://doi.org/10.1175/1520-0493(2000)128<1852:AEKSFN>2.0.CO;2
    | Analysis Scheme in the Ensemble Kalman Filter (Burgers et al., 1998)
    | https://doi.org/10.1175/1520-0493(1998)126<1719:ASITEK>2.0.CO;2
"""

__all__ = ["ensemble_kalman_smoother", "gaspari_cohn"]

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from .._arguments import floating
from .observation import Observation


class Localisation(NamedTuple):
    """Factors between 0 and 1 by which sample covariances are multiplied.

    Arguments:
        state: Those of state elements with observed ones, with shape (*state, *observation).
        observation: Those among observed elements, with shape (*observation, *observation).
    """

    state: Tensor
    observation: Tensor


def gaspari_cohn(distance: Tensor, radius: float) -> Tensor:
    """Returns the fifth-order correlation function, 1 at distance 0 and 0 from `radius` on.

    References:
        | Construction of correlation functions in two and three dimensions
        | (Gaspari & Cohn, 1999), equation 4.10, https://doi.org/10.1002/qj.49712555417

    Arguments:
        distance: Distances, zero or positive, with shape (*).
        radius: The distance from which on it is zero, twice their c, in the distances' units.

    Raises:
        ValueError: The radius is not positive.
    """
    if not radius > 0:
        raise ValueError(f"radius must be positive, but is {radius}")

    r = distance / (radius / 2)
    near = 1 + r**2 * (-5 / 3 + r * (5 / 8 + r * (1 / 2 - r / 4)))
    s = r.clamp(min=1)
    far = 4 - 5 * s + s**2 * (5 / 3 + s * (5 / 8 + s * (-1 / 2 + s / 12))) - 2 / (3 * s)

    return torch.where(r < 1, near, torch.where(r < 2, far, 0.0)).clamp(min=0)


@torch.no_grad()
def ensemble_kalman_smoother(
    chain: Any,
    observation: Observation,
    x: Tensor,
    *,
    length: int | None = None,
    lag: int | None = None,
    inflation: float = 1.0,
    localisation: tuple[Tensor, Tensor] | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Draws trajectories by the ensemble Kalman smoother with perturbed observations.

    Arguments:
        chain: The system, with a method `transition(x, generator=)`.
        observation: What was observed.
        x: Draws of the state :math:`x_0` *before* the first, as in
            :meth:`sda_fast.MarkovChain.trajectory`, with shape (n, *state).
        length: The number L of states. By default that of the observation; more are a forecast.
        lag: How many states before the observed one are moved. By default all; 0 is the filter.
        inflation: The factor of the observed state's anomalies before it is moved.
        localisation: The factors of covariances, of state elements with observed ones, with shape
            (*state, *observation), and among observed ones, with shape
            (*observation, *observation), for instance by :func:`gaspari_cohn`.
        generator: The source of randomness.

    Returns:
        The members' trajectories, with shape (n, L, *state).

    Raises:
        ValueError: There are fewer than two members, or an argument is out of its range.
        FloatingPointError: A state is not finite. It says at which step.
    """
    n, length = len(x), len(observation) if length is None else length
    if n < 2 or length < 1:
        raise ValueError(f"x must have 2 members and length be 1 at least, but are {n}, {length}")
    if lag is not None and lag < 0:
        raise ValueError(f"lag must not be negative, but is {lag}")
    if not inflation > 0:
        raise ValueError(f"inflation must be positive, but is {inflation}")
    factors = None if localisation is None else Localisation(*localisation)

    x = floating(x)
    states = x.new_empty(n, length, *x.shape[1:])
    for i in range(length):
        x = chain.transition(x, generator=generator)
        if not bool(x.isfinite().all()):
            raise FloatingPointError(f"a state of step {i} is not finite: the ensemble diverged")
        states[:, i] = x

        if observation.observed(i):
            states[:, i] += (inflation - 1) * (x - x.mean(dim=0))
            past = states[:, 0 if lag is None else max(i - lag, 0) : i + 1]
            past += _increment(past, observation, i, factors, generator)
            x = states[:, i]

    return states


def _increment(
    past: Tensor,
    observation: Observation,
    i: int,
    factors: Localisation | None,
    generator: Generator | None,
) -> Tensor:
    """Returns what moves the states (n, T, *state), the last of which is observed."""
    n, y = len(past), observation.y[i].double()
    seen = ~y.isnan()
    std = torch.as_tensor(observation.std)[i][seen]

    prediction = observation.A(past[:, -1]).double()
    if prediction.shape[1:] != y.shape:
        raise ValueError(
            f"A must map states ({n}, *state) to ({n}, *observation), with shape "
            f"{(n, *y.shape)}, but gives {tuple(prediction.shape)}"
        )
    prediction = prediction[:, seen]

    # centred and of the right variance, so that the noise moves neither mean nor spread
    noise = torch.randn(prediction.shape, dtype=y.dtype, generator=generator).to(y.device)
    noise = math.sqrt(n / (n - 1)) * (noise - noise.mean(dim=0)) * std

    X = past.double().flatten(1)
    X, Y = X - X.mean(dim=0), prediction - prediction.mean(dim=0)
    C_xy, C_yy = X.T @ Y / (n - 1), Y.T @ Y / (n - 1)

    if factors is not None:
        pairs = seen.flatten()
        C_xy = C_xy.reshape(past.shape[1], -1, len(std))
        C_xy = C_xy * factors.state.reshape(C_xy.shape[1], -1)[:, pairs]
        C_xy = C_xy.flatten(0, 1)
        C_yy = C_yy * factors.observation.reshape(seen.numel(), -1)[pairs][:, pairs]

    innovation = y[seen] + noise - prediction
    weights = torch.linalg.solve(C_yy + torch.diag(std**2), innovation.T)

    return (C_xy @ weights).T.reshape(past.shape).to(past.dtype)
