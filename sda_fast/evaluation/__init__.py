"""What samples are judged by: scores of an ensemble, other methods, and laws known exactly."""

__all__ = [
    "Analysis",
    "Flatness",
    "Gaussian",
    "GaussianEstimator",
    "LinearGaussianChain",
    "LinearObservation",
    "Observation",
    "Particles",
    "Smoothed",
    "WindowEstimator",
    "coverage",
    "crps",
    "energy_distance",
    "ensemble_kalman_smoother",
    "flatness",
    "four_d_var",
    "gaspari_cohn",
    "gaussian_wasserstein",
    "kalman_filter",
    "kl_divergence",
    "log_likelihood",
    "log_prior",
    "mmd",
    "particle_filter",
    "posterior",
    "rank_histogram",
    "rmse",
    "rts_smoother",
    "sampler_law",
    "spread",
    "spread_skill",
    "stationary",
    "systematic",
    "wasserstein",
]

from .distances import energy_distance, mmd, wasserstein
from .ensemble_kalman import ensemble_kalman_smoother, gaspari_cohn
from .law import (
    GaussianEstimator,
    WindowEstimator,
    gaussian_wasserstein,
    kl_divergence,
    sampler_law,
)
from .linear_gaussian import (
    Gaussian,
    LinearGaussianChain,
    LinearObservation,
    Smoothed,
    kalman_filter,
    posterior,
    rts_smoother,
    stationary,
)
from .metrics import (
    Flatness,
    coverage,
    crps,
    flatness,
    log_likelihood,
    log_prior,
    rank_histogram,
    rmse,
    spread,
    spread_skill,
)
from .observation import Observation
from .particle_filter import Particles, particle_filter, systematic
from .variational import Analysis, four_d_var
