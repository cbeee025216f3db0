"""Scores of a posterior ensemble.

An ensemble has shape (N, *) and the truth shape (*): every element is one forecast of one number.

References:
    | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting & Raftery, 2007)
    | https://doi.org/10.1198/016214506000001437
"""

__all__ = [
    "Flatness",
    "coverage",
    "crps",
    "flatness",
    "log_likelihood",
    "log_prior",
    "rank_histogram",
    "rmse",
    "spread",
    "spread_skill",
]

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor


def rmse(estimate: Tensor, truth: Tensor) -> float:
    """Returns the root-mean-square error of an estimate, in the units of the state.

    Arguments:
        estimate: The estimate, with shape (*).
        truth: The truth, with shape (*).

    Raises:
        ValueError: The shapes differ.
    """
    if estimate.shape != truth.shape:
        raise ValueError(
            f"truth must have the shape of the estimate, {tuple(estimate.shape)}, but has shape "
            f"{tuple(truth.shape)}"
        )
    return float((estimate.double() - truth.double()).square().mean().sqrt())


def spread(ensemble: Tensor) -> float:
    r"""Returns the root of the ensemble's mean variance, in the units of the state.

    .. math:: \left( \operatorname{mean} \frac{1}{N - 1} \sum_n (x_n - \bar x)^2 \right)^{1/2}

    Arguments:
        ensemble: The members, with shape (N, *).

    Raises:
        ValueError: There are fewer than two members.
    """
    _members(ensemble, 2)
    return float(ensemble.double().var(dim=0).mean().sqrt())


def spread_skill(ensemble: Tensor, truth: Tensor) -> float:
    r"""Returns the ratio of the ensemble's spread to the error of its mean: 1 is reliable, less is
    overconfident.

    .. math:: \sqrt{\frac{N + 1}{N}} \, \frac{\mathrm{spread}}{\mathrm{rmse}(\bar x, x)}

    The factor corrects for the sampling error of a mean of N members.

    References:
        | Why Should Ensemble Spread Match the RMSE of the Ensemble Mean? (Fortin et al., 2014)
        | https://doi.org/10.1175/JHM-D-14-0008.1

    Arguments:
        ensemble: The members, with shape (N, *).
        truth: The truth, with shape (*).

    Returns:
        The ratio, infinite if the mean is the truth.

    Raises:
        ValueError: The shapes do not fit, there are fewer than two members, or the ensemble has
            neither spread nor error.
    """
    _check(ensemble, truth, 2)
    N, width, error = len(ensemble), spread(ensemble), rmse(ensemble.double().mean(dim=0), truth)
    if error == 0:
        if width == 0:
            raise ValueError("ensemble must have spread or error, but all members are the truth")
        return math.inf

    return math.sqrt((N + 1) / N) * width / error


def coverage(ensemble: Tensor, truth: Tensor, level: float = 0.9, *, fair: bool = False) -> float:
    r"""Returns how much of the truth lies within the ensemble's central band.

    The band of quantiles of few members is too narrow: of N members of the truth's own law, its
    edges at the members of ranks i and j, it holds the truth only (j - i) / (N + 1) of the time on
    average, about :math:`\text{level} (N - 1) / (N + 1)`. The fair band is wider by as much, and so
    compares ensembles of several sizes. It is exact for any continuous law where its edges are
    members, where (1 - level) (N + 1) / 2 is whole. Edges between two members are interpolated: for
    uniform laws that is exact too, for others within 2 / (N + 1).

    Arguments:
        ensemble: The members, with shape (N, *).
        truth: The truth, with shape (*), or several, with shape (M, *).
        level: The share of the members that the band holds, between 0 and 1.
        fair: Whether to widen the band, so that it holds the truth about that often on average.

    Raises:
        ValueError: The shapes do not fit, something is NaN, the level is out of its range, or the
            fair band is beyond all members: there are fewer than (1 + level) / (1 - level), or 2.
    """
    _check(ensemble, truth, 1, several=True)
    _numbers(ensemble, truth)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, but is {level}")
    if fair:
        N, least = len(ensemble), max(math.ceil((1 + level) / (1 - level) - 1e-9), 2)
        if least > N:
            raise ValueError(
                f"a fair band of level {level:g} needs at least {least} members, got {N}"
            )
        level = min(level * (N + 1) / (N - 1), 1.0)
    x = ensemble.double()
    low, high = x.quantile(x.new_tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)

    return float(((low <= truth) & (truth <= high)).double().mean())


def crps(ensemble: Tensor, truth: Tensor, *, fair: bool = False) -> Tensor:
    r"""Returns the continuous ranked probability score, less being better.

    .. math:: \int (F(z) - 1[z \ge x])^2 dz
        = \frac{1}{N} \sum_n |x_n - x| - \frac{1}{2 N^2} \sum_{n, m} |x_n - x_m|

    for the ensemble's distribution function F. The double sum is taken over sorted members, in
    N log N. The fair score, :math:`N (N - 1)` in place of :math:`N^2`, estimates without bias that
    of the law which the members were drawn from, and so compares ensembles of several sizes.

    References:
        | Fair scores for ensemble forecasts (Ferro, 2014)
        | https://doi.org/10.1002/qj.2270

    Arguments:
        ensemble: The members, with shape (N, *).
        truth: The truth, with shape (*).
        fair: Whether to return the fair score, which needs two members.

    Returns:
        The score of each element, with shape (*), in float64 and in the units of the state.

    Raises:
        ValueError: The shapes do not fit, or there are too few members.
    """
    _check(ensemble, truth, 2 if fair else 1)
    N, x = len(ensemble), ensemble.double().sort(dim=0).values

    # sum over pairs of |x_n - x_m|: the member of rank n is above n others and below N - 1 - n
    weight = 2 * torch.arange(N, dtype=torch.float64, device=x.device) - N + 1
    pairs = 2 * torch.tensordot(weight, x, dims=1)

    return (x - truth).abs().mean(dim=0) - pairs / (2 * N * (N - 1 if fair else N))


def rank_histogram(
    ensemble: Tensor, truth: Tensor, *, generator: Generator | None = None
) -> Tensor:
    """Counts the ranks of the truth among the members, uniform if it is like one of them.

    References:
        | Interpretation of Rank Histograms for Verifying Ensemble Forecasts (Hamill, 2001)
        | https://doi.org/10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2

    Arguments:
        ensemble: The members, with shape (N, *).
        truth: The truth, with shape (*).
        generator: The source of the random ranks among members equal to the truth.

    Returns:
        How many elements of the truth exceed n members, n = 0 to N, with shape (N + 1).

    Raises:
        ValueError: The shapes do not fit, or something is NaN.
    """
    _check(ensemble, truth, 1)
    _numbers(ensemble, truth)

    below, ties = (ensemble < truth).sum(dim=0), (ensemble == truth).sum(dim=0)
    u = torch.rand(truth.shape, dtype=torch.float64, generator=generator).to(truth.device)
    rank = below + (u * (ties + 1)).floor().long()

    return rank.flatten().bincount(minlength=len(ensemble) + 1)


class Flatness(NamedTuple):
    """A test of flatness.

    Arguments:
        statistic: Pearson's chi-square.
        p_value: The probability of a statistic as large under flatness.
    """

    statistic: float
    p_value: float


def flatness(counts: Tensor) -> Flatness:
    """Tests whether a rank histogram is flat, by Pearson's chi-square.

    The test takes the ranks as independent. Those of neighbours in time or space are not, which
    makes small p-values too common: thin them first. It needs SciPy.

    Arguments:
        counts: The counts of each rank, with shape (N + 1).

    Raises:
        ValueError: There are fewer than two ranks, or nothing was counted.
    """
    if counts.ndim != 1 or len(counts) < 2 or not bool(counts.sum() > 0):
        raise ValueError(
            f"counts must be of two ranks or more, and not all zero, but has shape "
            f"{tuple(counts.shape)} and the sum {float(counts.sum())}"
        )
    try:
        from scipy.stats import chisquare
    except ImportError as error:
        raise ImportError(
            "the test of flatness needs SciPy: pip install 'sda-fast[evaluation]'"
        ) from error

    statistic, p_value = chisquare(counts.cpu().numpy())
    return Flatness(float(statistic), float(p_value))


def log_prior(chain: Any, x: Tensor) -> Tensor:
    r"""Returns the mean log-density of the transitions, :math:`\log p(x_{i+1} \mid x_i)`.

    Arguments:
        chain: The system, with a method `log_prob`.
        x: Physical trajectories, with shape (*, L, D).

    Returns:
        The mean over the transitions of each trajectory, with shape (*).

    Raises:
        ValueError: There are fewer than two states, and so no transition.
    """
    if x.ndim < 2 or x.shape[-2] < 2:
        raise ValueError(
            f"x must be trajectories (*, L, D) of 2 or more states, but has shape {tuple(x.shape)}"
        )
    density: Tensor = chain.log_prob(x[..., :-1, :], x[..., 1:, :])
    return density.mean(dim=-1)


def log_likelihood(prediction: Tensor, y: Tensor, std: float | Tensor) -> Tensor:
    r"""Returns the log-density of observations, :math:`\log N(y \mid A(x), \mathrm{std}^2)`.

    Arguments:
        prediction: What is predicted of each sample, A(x), with shape (*, *observation).
        y: The observations, with shape (*observation). NaN stands for what was not observed.
        std: The standard deviation of the noise, broadcastable with y, in the units of y.

    Returns:
        The sum over what was observed, in nats, with shape (*), in float64.

    Raises:
        ValueError: The last dimensions of the prediction are not those of y, or std is not
            positive where something was observed.
    """
    batch = prediction.ndim - y.ndim
    if batch < 0 or prediction.shape[batch:] != y.shape:
        raise ValueError(
            f"prediction must have the last dimensions of y, {tuple(y.shape)}, but has shape "
            f"{tuple(prediction.shape)}"
        )

    std = torch.as_tensor(std, dtype=torch.float64, device=y.device).expand(y.shape)
    seen = ~y.isnan()
    std = std[seen]
    if not bool((std > 0).all()):
        raise ValueError(f"std must be positive, but its least is {float(std.min())}")
    z = (prediction[..., seen].double() - y[seen].double()) / std

    return -(z.square() / 2 + std.log() + math.log(2 * math.pi) / 2).sum(dim=-1)


def _members(ensemble: Tensor, least: int) -> None:
    if ensemble.ndim < 1 or len(ensemble) < least:
        raise ValueError(
            f"ensemble must have {least} or more members, but has shape {tuple(ensemble.shape)}"
        )


def _check(ensemble: Tensor, truth: Tensor, least: int, several: bool = False) -> None:
    _members(ensemble, least)
    member = ensemble.shape[1:]
    if truth.shape != member and not (several and truth.shape[1:] == member):
        raise ValueError(
            f"truth must have the shape of a member, {tuple(member)}, but has shape "
            f"{tuple(truth.shape)}"
        )


def _numbers(ensemble: Tensor, truth: Tensor) -> None:
    if bool(ensemble.isnan().any()) or bool(truth.isnan().any()):
        raise ValueError("ensemble and truth must be numbers, but hold NaN, which has no rank")
