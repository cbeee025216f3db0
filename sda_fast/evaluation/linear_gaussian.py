r"""Linear-Gaussian chains, in which everything is known exactly: the test bed of the method.

The states follow

.. math:: x_1 \sim N(\mu_1, \Sigma_1), \qquad x_i \sim N(A x_{i-1} + b, \Sigma_x)

and some are observed, :math:`y \sim N(H x_i, R)`. Trajectories are then jointly Gaussian, before
and after conditioning. What the sampler makes of them is known too, in :mod:`.law`. Everything is
computed in float64.

References:
    | A New Approach to Linear Filtering and Prediction Problems (Kalman, 1960)
    | https://doi.org/10.1115/1.3662552
    | Maximum likelihood estimates of linear dynamic systems (Rauch, Tung & Striebel, 1965)
    | https://doi.org/10.2514/3.3166
"""

__all__ = [
    "Gaussian",
    "LinearGaussianChain",
    "LinearObservation",
    "Smoothed",
    "kalman_filter",
    "posterior",
    "rts_smoother",
    "stationary",
]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor


class Gaussian(NamedTuple):
    """A Gaussian law, or several.

    Arguments:
        mean: The mean, with shape (*, n).
        covariance: The covariance, with shape (*, n, n).
    """

    mean: Tensor
    covariance: Tensor

    def condition(self, H: Tensor, R: Tensor, y: Tensor) -> "Gaussian":
        r"""Returns the law of x given :math:`y \sim N(H x, R)`.

        Arguments:
            H: The observation matrix, with shape (m, n).
            R: The covariance of the observation noise, with shape (m, m).
            y: The observation, with shape (m). NaN stands for what was not observed.
        """
        seen = ~y.isnan()
        H, R, y = H[seen], R[seen][:, seen], y[seen]
        m, S = self
        gain = torch.linalg.solve(H @ S @ H.T + R, H @ S).T
        S = S - gain @ H @ S

        return Gaussian(m + gain @ (y - H @ m), (S + S.T) / 2)

    def sample(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws from the law, or from each of several, with shape (*shape, *, n)."""
        z = torch.randn(*shape, *self.mean.shape, dtype=self.mean.dtype, generator=generator)
        return self.mean + (z[..., None, :] @ torch.linalg.cholesky(self.covariance).mT)[..., 0, :]

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the log-density of x (*, n), with shape (*)."""
        law = torch.distributions.MultivariateNormal(self.mean, self.covariance)
        return law.log_prob(x)


def stationary(A: Tensor, b: Tensor, Sigma_x: Tensor) -> Gaussian:
    r"""Returns the law that transitions leave as it is: :math:`m = A m + b` and the discrete
    Lyapunov equation :math:`S = A S A^T + \Sigma_x`.

    Raises:
        ValueError: The chain is not stable, so that it has no stationary law.
    """
    radius = float(torch.linalg.eigvals(A).abs().max())
    if radius >= 1:
        raise ValueError(
            f"A must have eigenvalues within the unit circle, got one of modulus {radius}"
        )

    eye = torch.eye(len(A), dtype=A.dtype)
    mean = torch.linalg.solve(eye - A, b)
    # vec(A S A^T) = (A x A) vec(S)
    S = torch.linalg.solve(torch.kron(eye, eye) - torch.kron(A, A), Sigma_x.flatten())
    S = S.reshape(A.shape)

    return Gaussian(mean, (S + S.T) / 2)


@dataclass(frozen=True, eq=False)
class LinearGaussianChain:
    r"""A linear-Gaussian Markov chain, :math:`x_i \sim N(A x_{i-1} + b, \Sigma_x)`.

    Arguments:
        A: The transition matrix, with shape (D, D).
        b: The drift, with shape (D).
        Sigma_x: The covariance of the transitions, with shape (D, D).
        first: The law of the first state :math:`x_1`.
    """

    A: Tensor
    b: Tensor
    Sigma_x: Tensor
    first: Gaussian

    def __post_init__(self) -> None:
        D = len(self.b)
        shapes = [tuple(x.shape) for x in (self.A, self.b, self.Sigma_x, *self.first)]
        if shapes != [(D, D), (D,), (D, D), (D,), (D, D)]:
            raise ValueError(f"A, b, Sigma_x and first must be of one size, got shapes {shapes}")

        for name in ("A", "b", "Sigma_x"):
            object.__setattr__(self, name, getattr(self, name).double())
        object.__setattr__(self, "first", Gaussian(*(x.double() for x in self.first)))

    @classmethod
    def stationary(cls, A: Tensor, b: Tensor, Sigma_x: Tensor) -> "LinearGaussianChain":
        """Returns the chain whose states all have the same law."""
        return cls(A, b, Sigma_x, stationary(A.double(), b.double(), Sigma_x.double()))

    @classmethod
    def of(cls, system: Any) -> "LinearGaussianChain":
        """Returns the chain of a system such as :class:`sda_fast.DampedSpring`, with `A`, `b`,
        `Sigma_x`, `mu_0` and `Sigma_0`: of the states that follow its initial one."""
        coefficients = system.A, system.b, system.Sigma_x
        initial = cls(*coefficients, Gaussian(system.mu_0, system.Sigma_0))

        return cls(*coefficients, initial.follow(initial.first))

    def follow(self, law: Gaussian) -> Gaussian:
        """Returns the law of the state after a state of the given law."""
        return Gaussian(
            self.A @ law.mean + self.b, self.A @ law.covariance @ self.A.T + self.Sigma_x
        )

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Draws the states that follow x (*, D), in float64."""
        noise = Gaussian(self.b, self.Sigma_x).sample(x.shape[:-1], generator=generator)
        return x.double() @ self.A.T + noise

    def log_prob(self, x1: Tensor, x2: Tensor) -> Tensor:
        r"""Returns the log-density :math:`\log p(x_2 \mid x_1)` of transitions, with shape (*)."""
        return Gaussian(self.b, self.Sigma_x).log_prob(x2.double() - x1.double() @ self.A.T)

    def laws(self, length: int) -> Gaussian:
        """Returns the laws of each of `length` states, with shapes (L, D) and (L, D, D)."""
        laws = [self.first]
        for _ in range(length - 1):
            laws.append(self.follow(laws[-1]))
        return _stack(laws)

    def joint(self, length: int) -> Gaussian:
        """Returns the law of a trajectory of `length` states, with shapes (L D) and (L D, L D)."""
        mean, marginal = self.laws(length)
        D = len(self.b)
        S = mean.new_zeros(length, D, length, D)

        for i in range(length):
            block = marginal[i]
            for j in range(i, length):  # Cov(x_j, x_i) = A^(j - i) Cov(x_i)
                S[j, :, i], S[i, :, j] = block, block.T
                block = self.A @ block

        return Gaussian(mean.flatten(), S.reshape(length * D, length * D))


@dataclass(frozen=True, eq=False)
class LinearObservation:
    r"""Observations :math:`y_n \sim N(H x_{i_n}, R)` of a trajectory.

    Arguments:
        times: The numbers :math:`i_n` of the states observed, counted from 0, with shape (N).
        H: The observation matrix, with shape (M, D).
        R: The covariance of the observation noise, with shape (M, M).
        y: The observations, with shape (N, M). NaN stands for what was not observed.

    Raises:
        ValueError: The sizes do not fit, y is infinite, or times are no numbers of states.
    """

    times: Sequence[int]
    H: Tensor
    R: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        times = [int(time) for time in self.times]
        if times != list(self.times) or min(times, default=0) < 0:
            raise ValueError(f"times must be whole numbers from 0 on, got {list(self.times)}")

        N, M, D = len(times), self.y.shape[-1:], self.H.shape[-1:]
        shapes = [tuple(x.shape) for x in (self.H, self.R, self.y)]
        if shapes != [(*M, *D), (*M, *M), (N, *M)]:
            raise ValueError(
                f"H, R and y must have shapes (M, D), (M, M) and (N, M), for the {N} times, got "
                f"shapes {shapes}"
            )
        if bool(self.y.isinf().any()):
            raise ValueError("y must be finite, or NaN for what was not observed, but is infinite")

        object.__setattr__(self, "times", times)
        for name in ("H", "R", "y"):
            object.__setattr__(self, name, getattr(self, name).double())

    def within(self, length: int) -> list[int]:
        """Returns the times, if all are of states of a trajectory.

        Raises:
            ValueError: One of them is not.
        """
        if max(self.times, default=-1) >= length:
            raise ValueError(
                f"times must be below the length, {length}, but go up to {max(self.times)}"
            )
        return list(self.times)

    def matrix(self, length: int) -> Tensor:
        """Returns the observation matrix of a trajectory, with shape (N M, L D)."""
        rows = torch.eye(length, dtype=self.H.dtype)[self.within(length)]
        return torch.kron(rows, self.H)

    def covariance(self) -> Tensor:
        """Returns the covariance of the noise of all observations, with shape (N M, N M)."""
        return torch.kron(torch.eye(len(self.times), dtype=self.R.dtype), self.R)


def posterior(chain: LinearGaussianChain, observation: LinearObservation, length: int) -> Gaussian:
    """Returns the law of a trajectory given observations, by conditioning the joint law."""
    return chain.joint(length).condition(
        observation.matrix(length), observation.covariance(), observation.y.flatten()
    )


def kalman_filter(
    chain: LinearGaussianChain, observation: LinearObservation, length: int
) -> tuple[Gaussian, Gaussian]:
    """Computes the law of each state given the observations so far (Kalman, 1960).

    Returns:
        The laws given the observations before the state, and those given the state's own as well,
        both with shapes (L, D) and (L, D, D).
    """
    predicted: list[Gaussian] = []
    filtered: list[Gaussian] = []
    times = observation.within(length)

    for i in range(length):
        law = chain.follow(filtered[-1]) if filtered else chain.first
        predicted.append(law)
        for time, y in zip(times, observation.y, strict=True):
            if time == i:
                law = law.condition(observation.H, observation.R, y)
        filtered.append(law)

    return _stack(predicted), _stack(filtered)


class Smoothed(NamedTuple):
    """The laws of states, and of neighbours, given all observations.

    Arguments:
        mean: The means, with shape (L, D).
        covariance: The covariances, with shape (L, D, D).
        lag_one: The covariances of each state with the one before, with shape (L - 1, D, D).
    """

    mean: Tensor
    covariance: Tensor
    lag_one: Tensor


def rts_smoother(
    chain: LinearGaussianChain, observation: LinearObservation, length: int
) -> Smoothed:
    """Computes the law of each state given all observations (Rauch, Tung & Striebel, 1965)."""
    predicted, filtered = kalman_filter(chain, observation, length)
    law = Gaussian(filtered.mean[-1], filtered.covariance[-1])
    laws, lag_one = [law], []

    for i in reversed(range(length - 1)):
        P = filtered.covariance[i]
        gain = torch.linalg.solve(predicted.covariance[i + 1], chain.A @ P).T
        lag_one.append(law.covariance @ gain.T)
        law = Gaussian(
            filtered.mean[i] + gain @ (law.mean - predicted.mean[i + 1]),
            P + gain @ (law.covariance - predicted.covariance[i + 1]) @ gain.T,
        )
        laws.append(law)

    empty = chain.A.new_empty(0, *chain.A.shape)

    return Smoothed(*_stack(laws[::-1]), torch.stack(lag_one[::-1]) if lag_one else empty)


def _stack(laws: Sequence[Any]) -> Gaussian:
    return Gaussian(*(torch.stack(moments) for moments in zip(*laws, strict=True)))
