"""Scores of a posterior ensemble."""

__all__ = ["coverage", "log_prior", "rmse"]

from typing import Any

from torch import Tensor


def rmse(estimate: Tensor, truth: Tensor) -> float:
    """Returns the root-mean-square error of an estimate, in the units of the state."""
    return float((estimate - truth).square().mean().sqrt())


def coverage(ensemble: Tensor, truth: Tensor, level: float = 0.9) -> float:
    """Returns how much of the truth lies within the ensemble's central band.

    Arguments:
        ensemble: The members, with shape (N, *).
        truth: The truth, with shape (*).
        level: The share of the members that the band holds.
    """
    edges = ensemble.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = ensemble.quantile(edges, dim=0)

    return float(((low <= truth) & (truth <= high)).float().mean())


def log_prior(chain: Any, x: Tensor) -> Tensor:
    r"""Returns the mean log-density of the transitions, :math:`\log p(x_{i+1} \mid x_i)`.

    Arguments:
        chain: The system, with a method `log_prob`.
        x: Physical trajectories, with shape (*, L, D).

    Returns:
        The mean over the transitions of each trajectory, with shape (*).
    """
    density: Tensor = chain.log_prob(x[..., :-1, :], x[..., 1:, :])
    return density.mean(dim=-1)
