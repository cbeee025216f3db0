r"""Diagnostics of two-dimensional flows on the doubly periodic square of side :math:`2 \pi`.

A velocity field is a tensor (*, 2, H, W): its components :math:`(u, v)` along the axes
:math:`(x, y)`, which are its last two dimensions, at spacings :math:`2 \pi / H` and
:math:`2 \pi / W`. The wavenumbers of such a field are integers.
"""

__all__ = [
    "coarsen",
    "divergence",
    "energy_spectrum",
    "enstrophy",
    "log_spectral_distance",
    "temporal_correlation",
    "upsample",
    "vorticity",
]

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


def _velocity(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the components of a velocity field (*, 2, H, W)."""
    if x.ndim < 3 or x.shape[-3] != 2:
        raise ValueError(f"x must be a velocity field (*, 2, H, W), got shape {tuple(x.shape)}")
    u, v = x.unbind(dim=-3)
    return u, v


def _spacing(x: Tensor, dim: int) -> float:
    return 2 * math.pi / x.shape[dim]


def coarsen(x: Tensor, r: int = 2) -> Tensor:
    """Averages fields (*, H, W) over blocks of r × r points.

    Returns:
        The fields, with shape (*, H / r, W / r).

    Raises:
        ValueError: r does not divide H and W.
    """
    if x.ndim < 2 or r < 1 or x.shape[-2] % r or x.shape[-1] % r:
        raise ValueError(f"r must divide the last two dimensions of x, got {r} for {(*x.shape,)}")

    *batch, h, w = x.shape
    return x.reshape(*batch, h // r, r, w // r, r).mean(dim=(-3, -1))


def upsample(x: Tensor, r: int = 2, mode: str = "bilinear") -> Tensor:
    """Interpolates periodic fields (*, H, W) to a grid r times as fine.

    Arguments:
        x: The fields.
        r: The factor.
        mode: How :func:`torch.nn.functional.interpolate` interpolates.

    Returns:
        The fields, with shape (*, r H, r W).
    """
    if x.ndim < 2 or r < 1:
        raise ValueError(f"x must be fields (*, H, W) and r positive, got {(*x.shape,)} and {r}")

    *batch, h, w = x.shape
    # two points are the reach of bicubic interpolation; along a side of one point nothing varies
    a, b = min(2, h), min(2, w)

    y = pad(x.reshape(-1, 1, h, w), pad=(b, b, a, a), mode="circular")
    y = interpolate(y, scale_factor=(r, r), mode=mode)
    y = y[..., a * r : -a * r, b * r : -b * r]

    return y.reshape(*batch, r * h, r * w)


def vorticity(x: Tensor) -> Tensor:
    r"""Returns the vorticity of velocity fields (*, 2, H, W), with shape (*, H, W).

    .. math:: \omega = \partial_x v - \partial_y u

    by central differences, with both components taken at the same points.
    """
    u, v = _velocity(x)
    dv = (v.roll(-1, dims=-2) - v.roll(1, dims=-2)) / (2 * _spacing(x, -2))
    du = (u.roll(-1, dims=-1) - u.roll(1, dims=-1)) / (2 * _spacing(x, -1))
    return dv - du


def divergence(x: Tensor) -> Tensor:
    r"""Returns the divergence of velocity fields (*, 2, H, W), with shape (*, H, W).

    .. math:: \nabla \cdot x = \partial_x u + \partial_y v

    by backward differences: on a staggered grid, whose velocities are at the far faces of their
    cells, it is the net outflow of each cell, which an incompressible solver keeps at zero.
    """
    u, v = _velocity(x)
    return (u - u.roll(1, dims=-2)) / _spacing(x, -2) + (v - v.roll(1, dims=-1)) / _spacing(x, -1)


def enstrophy(x: Tensor) -> Tensor:
    r"""Returns the enstrophy :math:`\langle \omega^2 \rangle / 2` of velocity fields (*, 2, H, W),
    with shape (*). The angles are the mean over the square."""
    return vorticity(x).square().mean(dim=(-2, -1)) / 2


def energy_spectrum(x: Tensor) -> Tensor:
    r"""Returns the isotropic spectrum of the kinetic energy of velocity fields.

    .. math::
        E(k) = \frac{1}{2} \sum_{k - 1/2 \leq |\kappa| < k + 1/2} |\hat u_\kappa|^2 +
            |\hat v_\kappa|^2, \qquad \sum_k E(k) = \frac{1}{2} \langle u^2 + v^2 \rangle

    where :math:`\hat u_\kappa` are the coefficients of the Fourier series and the sum is over
    whole wave vectors :math:`\kappa`.

    Arguments:
        x: The velocity fields, with shape (*, 2, H, W).

    Returns:
        The energies at wavenumbers k = 0, 1, 2, ..., with shape (*, K), up to the corner of the
        resolved wave vectors. Shells beyond min(H, W) / 2 are not whole.
    """
    _velocity(x)
    *batch, _, h, w = x.shape

    energy = torch.fft.fft2(x, norm="forward").abs().square().sum(dim=-3) / 2
    kx = torch.fft.fftfreq(h, d=1 / h, dtype=torch.float64, device=x.device)
    ky = torch.fft.fftfreq(w, d=1 / w, dtype=torch.float64, device=x.device)
    shell = (torch.hypot(kx[:, None], ky) + 0.5).floor().long().flatten()

    spectrum = energy.new_zeros(*batch, int(shell.max()) + 1)
    return spectrum.index_add(-1, shell, energy.flatten(-2))


def log_spectral_distance(x: Tensor, y: Tensor) -> float:
    r"""Returns the distance of the mean energy spectra of two sets of velocity fields, in decibels.

    .. math:: \left( \frac{1}{K - 1} \sum_{k = 1}^{K - 1}
        \left( 10 \log_{10} \frac{\bar E_x(k)}{\bar E_y(k)} \right)^2 \right)^{1/2}

    over the shells that are whole, those below K = min(H, W) / 2, rounded down. A shell without
    energy in both is one of equal energy; without energy in one only, the distance is infinite.

    References:
        | Distance measures for speech processing (Gray & Markel, 1976)
        | https://doi.org/10.1109/TASSP.1976.1162849

    Arguments:
        x: Velocity fields, with shape (*, 2, H, W).
        y: Others on the same grid, as many or not.

    Raises:
        ValueError: The grids differ, or have no whole shell, with fewer than 4 points along a side.
    """
    if x.shape[-3:] != y.shape[-3:]:
        raise ValueError(
            f"x and y must be on one grid, but have shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    _velocity(x)
    K = min(x.shape[-2:]) // 2
    if K < 2:
        raise ValueError(
            f"x and y must have 4 or more points along each side, but have shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    spectra = (energy_spectrum(z.double().reshape(-1, *z.shape[-3:])).mean(dim=0) for z in (x, y))
    e, f = (spectrum[1:K] for spectrum in spectra)
    ratio = torch.where(e == f, 1.0, e / f)
    return float((10 * ratio.log10()).square().mean().sqrt())


def temporal_correlation(x: Tensor) -> Tensor:
    r"""Returns the correlation of fields with those some states later.

    .. math:: r_l = \frac{\langle x_i \cdot x_{i + l} \rangle}
        {\sqrt{\langle x_i \cdot x_i \rangle \langle x_{i + l} \cdot x_{i + l} \rangle}}

    The means are over trajectories, states, channels and points; none is subtracted.

    Arguments:
        x: Trajectories of fields, with shape (*, L, C, H, W).

    Returns:
        The correlation at lags l = 0 to L - 1, with shape (L), in float64. At long lags few pairs
        of states are left.
    """
    if x.ndim < 4:
        raise ValueError(f"x must be trajectories (*, L, C, H, W), got shape {tuple(x.shape)}")

    x = x.double().flatten(-3)
    L = x.shape[-2]
    pairs = ((x[..., : L - lag, :], x[..., lag:, :]) for lag in range(L))
    return torch.stack(
        [(a * b).sum() / (a.square().sum() * b.square().sum()).sqrt() for a, b in pairs]
    )
