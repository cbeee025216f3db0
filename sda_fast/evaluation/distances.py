"""Distances between two ensembles, of members of any shape, flattened.

All are computed in float64 from Euclidean distances between members, and are in the units of the
state, of which they mix all elements: standardise what should count alike.
"""

__all__ = ["energy_distance", "mmd", "wasserstein"]

import torch
from torch import Tensor


def wasserstein(x: Tensor, y: Tensor, p: int = 1) -> float:
    r"""Returns the Wasserstein distance, the cost of moving one ensemble onto the other.

    .. math:: W_p = \left( \min_\pi \sum_{n, m} \pi_{nm} \|x_n - y_m\|^p \right)^{1/p}

    It is that of the empirical laws, exact, by the network simplex of POT. Two draws of one law are
    some way apart, further in more dimensions and less with more members: compare with that floor.

    References:
        | POT: Python Optimal Transport (Flamary et al., 2021)
        | https://jmlr.org/papers/v22/20-451.html

    Arguments:
        x: An ensemble, with shape (N, *).
        y: An ensemble, with shape (M, *).
        p: The exponent, 1 or 2.

    Raises:
        ValueError: The shapes do not fit, something is not finite, or p is neither 1 nor 2.
        ImportError: POT is not installed.
    """
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, but is {p}")
    x, y = _flatten(x, y)
    try:
        from ot import emd2
    except ImportError as error:
        raise ImportError(
            "the Wasserstein distance needs POT: pip install 'sda-fast[evaluation]', or "
            "pip install POT"
        ) from error

    distance = _pairwise(x, y)
    # the simplex compares costs with numbers of order one, beside which small ones are nothing
    scale = float(distance.max()) or 1.0
    cost = ((distance / scale) ** p).cpu().numpy()
    uniform = [torch.full((len(z),), 1 / len(z), dtype=torch.float64).numpy() for z in (x, y)]

    return scale * max(float(emd2(*uniform, cost, numItermax=10**7)), 0.0) ** (1 / p)


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    r"""Returns the energy distance, zero for equal laws only.

    .. math:: 2 E \|X - Y\| - E \|X - X'\| - E \|Y - Y'\|

    The means are over all pairs, so that the distance is never negative; the unbiased one leaves
    out the pairs of a member with itself, and its mean is zero for equal laws.

    References:
        | Energy statistics: A class of statistics based on distances (Székely & Rizzo, 2013)
        | https://doi.org/10.1016/j.jspi.2013.03.018

    Arguments:
        x: An ensemble, with shape (N, *).
        y: An ensemble, with shape (M, *).
        unbiased: Whether to leave out pairs of a member with itself. By default not, unlike
            :func:`mmd`.

    Raises:
        ValueError: The shapes do not fit, something is not finite, or there are too few members.
    """
    x, y = _flatten(x, y, least=2 if unbiased else 1)
    within = [_mean(_pairwise(z, z), unbiased) for z in (x, y)]

    return 2 * float(_pairwise(x, y).mean()) - sum(within)


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None, unbiased: bool = True) -> float:
    r"""Returns the squared maximum mean discrepancy for a Gaussian kernel.

    .. math:: E \, k(X, X') + E \, k(Y, Y') - 2 E \, k(X, Y), \qquad
        k(x, y) = \exp \left( - \|x - y\|^2 / 2 h^2 \right)

    The unbiased estimate leaves out the pairs of a member with itself, and may be negative.

    References:
        | A Kernel Two-Sample Test (Gretton et al., 2012), equations 3 and 5
        | https://jmlr.org/papers/v13/gretton12a.html

    Arguments:
        x: An ensemble, with shape (N, *).
        y: An ensemble, with shape (M, *).
        bandwidth: The kernel's h, in the units of the state. By default the median distance
            between two members of both ensembles together.
        unbiased: Whether to leave out pairs of a member with itself. By default so, unlike
            :func:`energy_distance`.

    Raises:
        ValueError: The shapes do not fit, something is not finite, there are too few members, or
            the bandwidth is not positive, as that of members which are mostly equal is not.
    """
    x, y = _flatten(x, y, least=2 if unbiased else 1)
    N, D = len(x), _pairwise(*[torch.cat((x, y))] * 2)

    if bandwidth is None:
        pairs = torch.triu_indices(len(D), len(D), offset=1, device=D.device)
        bandwidth = float(D[pairs[0], pairs[1]].median())
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, but is {bandwidth}")

    k = torch.exp(-(D**2) / (2 * bandwidth**2))
    within = [_mean(block, unbiased) for block in (k[:N, :N], k[N:, N:])]

    return sum(within) - 2 * float(k[:N, N:].mean())


def _flatten(x: Tensor, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != y.shape[1:] or x.ndim < 1 or y.ndim < 1:
        raise ValueError(
            f"x and y must be ensembles of members of one shape, but have shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    for name, z in (("x", x), ("y", y)):
        if len(z) < least:
            raise ValueError(f"{name} must have {least} or more members, but has {len(z)}")
        if not bool(z.isfinite().all()):
            raise ValueError(f"{name} must be finite, but is not")

    return x.detach().double().reshape(len(x), -1), y.detach().double().reshape(len(y), -1)


def _pairwise(x: Tensor, y: Tensor) -> Tensor:
    # by differences, not by a matrix product: equal members are at distance zero
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _mean(pairs: Tensor, unbiased: bool) -> float:
    """Returns the mean over pairs (N, N) of members, without the diagonal or with it."""
    N = len(pairs)
    if not unbiased:
        return float(pairs.mean())
    return float(pairs.sum() - pairs.diagonal().sum()) / (N * (N - 1))
