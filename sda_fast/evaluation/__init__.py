"""What samples are judged by: scores of an ensemble, and laws that are known exactly."""

__all__ = [
    "Gaussian",
    "GaussianEstimator",
    "LinearGaussianChain",
    "LinearObservation",
    "Smoothed",
    "WindowEstimator",
    "coverage",
    "kalman_filter",
    "log_prior",
    "posterior",
    "rmse",
    "rts_smoother",
    "stationary",
]

from .linear_gaussian import (
    Gaussian,
    GaussianEstimator,
    LinearGaussianChain,
    LinearObservation,
    Smoothed,
    WindowEstimator,
    kalman_filter,
    posterior,
    rts_smoother,
    stationary,
)
from .metrics import coverage, log_prior, rmse
