"""A linear-Gaussian chain, its observations, and the laws that follow: what methods are held to."""

import math

import torch
from torch import Generator, Tensor

from sda_fast.evaluation import LinearGaussianChain, LinearObservation, Observation

L, STD = 12, 0.5
H = torch.tensor([[1.0, -0.5]]).double()


def rotation() -> LinearGaussianChain:
    """A stationary chain of two coordinates, with a drift."""
    A = 0.95 * torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    return LinearGaussianChain.stationary(
        A, torch.tensor([0.1, -0.2]), torch.tensor([[0.2, 0.05], [0.05, 0.1]])
    )


def observe(times: tuple[int, ...] = (0, 3, 4, 9)) -> tuple[Observation, LinearObservation]:
    """Observes a mixture of both coordinates, written for all methods and for the Kalman filter."""
    y = torch.full((L, 1), math.nan, dtype=torch.float64)
    generator = Generator().manual_seed(0)
    y[list(times)] = torch.randn(len(times), 1, dtype=torch.float64, generator=generator)

    return (
        Observation(y, lambda x: x.double() @ H.T, STD),
        LinearObservation(times, H, STD**2 * torch.eye(1).double(), y[list(times)]),
    )


def covariances(x: Tensor) -> Tensor:
    """Returns the covariance of each state of trajectories (n, L, D), with shape (L, D, D)."""
    return torch.stack([states.T.cov() for states in x.unbind(dim=1)])
