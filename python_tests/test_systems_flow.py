"""Diagnostics of two-dimensional flows, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from sda_fast.systems import KolmogorovFlow
from sda_fast.systems.flow import (
    coarsen,
    divergence,
    energy_spectrum,
    enstrophy,
    log_spectral_distance,
    temporal_correlation,
    upsample,
    vorticity,
)


def mesh(h: int, w: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(h, dtype=torch.float64)[:, None] * 2 * math.pi / h
    y = torch.arange(w, dtype=torch.float64) * 2 * math.pi / w
    return x.expand(h, w), y.expand(h, w)


def sinc(k: int, n: int) -> float:
    """What central differences make of a derivative at wavenumber k, as a factor."""
    step = 2 * math.pi / n
    return math.sin(k * step) / (k * step)


def field(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (24, 32)])
def test_vorticity_of_waves(h: int, w: int):
    """u = sin 2y, v = cos 3x: exact but for the known factor of the differences."""
    x, y = mesh(h, w)
    omega = vorticity(torch.stack(((2 * y).sin(), (3 * x).cos())))
    expected = -3 * (3 * x).sin() * sinc(3, h) - 2 * (2 * y).cos() * sinc(2, w)
    torch.testing.assert_close(omega, expected)


def test_vorticity_of_a_vortex():
    """Taylor and Green's: vorticity 2 sin x sin y to second order, enstrophy 1/2, energy 1/4."""
    errors = []
    for n in (32, 64):
        x, y = mesh(n, n)
        vortex = torch.stack((x.sin() * y.cos(), -x.cos() * y.sin()))
        omega = vorticity(vortex)
        errors.append(float((omega - 2 * x.sin() * y.sin()).abs().max()))
        assert float(enstrophy(vortex)) == pytest.approx(0.5 * sinc(1, n) ** 2)
        assert float(energy_spectrum(vortex).sum()) == pytest.approx(0.25)
        assert divergence(vortex).abs().max() < 2 * math.pi / n
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)


def test_vorticity_of_the_reference_package():
    """Clockwise, and per grid point."""
    x = field(3, 2, 16, 16)
    torch.testing.assert_close(KolmogorovFlow.vorticity(x), -vorticity(x) * 2 * math.pi / 16)
    shear = torch.zeros(2, 8, 8)
    shear[0] = torch.arange(8.0)  # u = y: away from the edge, du/dy = 1
    assert (KolmogorovFlow.vorticity(shear)[:, 1:-1] == 1).all()


def test_divergence():
    """Zero for the rotated backward gradient of a stream function; else the outflow of a cell."""
    psi = field(2, 12, 16)
    u = (psi - psi.roll(1, dims=-1)) / (2 * math.pi / 16)
    v = -(psi - psi.roll(1, dims=-2)) / (2 * math.pi / 12)
    assert divergence(torch.stack((u, v), dim=-3)).abs().max() < 1e-12

    x = field(5, 2, 8, 8)
    flux = x[:, 0, 3, 4] - x[:, 0, 2, 4] + x[:, 1, 3, 4] - x[:, 1, 3, 3]
    torch.testing.assert_close(divergence(x)[:, 3, 4], flux / (2 * math.pi / 8))
    assert divergence(x).sum(dim=(-2, -1)).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 4, 2, 15, 15), (2, 2, 8, 12)])
def test_parseval(shape: tuple[int, ...]):
    x = field(*shape)
    energy = x.square().sum(dim=-3).mean(dim=(-2, -1)) / 2
    torch.testing.assert_close(energy_spectrum(x).sum(dim=-1), energy)


def test_spectrum_of_waves():
    """A wave's energy is in its shell, and waves of one length add up whatever their direction."""
    x, y = mesh(32, 32)
    u, v = 2 * (5 * y).sin(), 3 * (5 * x).cos() + (3 * x + 4 * y).sin() + 0.5
    spectrum = energy_spectrum(torch.stack((u, v)))
    expected = torch.zeros_like(spectrum)
    expected[5] = (4 + 9 + 1) / 4
    expected[0] = 0.125
    torch.testing.assert_close(spectrum, expected)
    assert len(spectrum) == round(16 * math.sqrt(2)) + 1


def test_block_mean():
    x = field(3, 2, 8, 12)
    y = coarsen(x, 4)
    assert y.shape == (3, 2, 2, 3)
    torch.testing.assert_close(y[1, 0, 1, 2], x[1, 0, 4:8, 8:12].mean())
    torch.testing.assert_close(coarsen(coarsen(x, 2), 2), y)
    assert torch.equal(coarsen(x, 1), x)


def test_upsample_then_coarsen():
    """Nearest neighbours come back; linear interpolation leaves a known average of neighbours."""
    x = field(3, 2, 8, 12)
    torch.testing.assert_close(coarsen(upsample(x, 4, mode="nearest"), 4), x)

    smooth = x
    for dim in (-2, -1):
        smooth = 0.75 * smooth + 0.125 * (smooth.roll(1, dim) + smooth.roll(-1, dim))
    torch.testing.assert_close(coarsen(upsample(x)), smooth)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_upsample_is_periodic(mode: str):
    """It commutes with shifts, also across the edges."""
    x = field(2, 3, 8, 8)
    y = upsample(x, 2, mode)
    assert y.shape == (2, 3, 16, 16)
    shifted = upsample(x.roll((3, -2), dims=(-2, -1)), 2, mode)
    torch.testing.assert_close(shifted, y.roll((6, -4), dims=(-2, -1)))
    torch.testing.assert_close(upsample(torch.ones(4, 4), 3, mode), torch.ones(12, 12))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_upsample_of_few_points(size: int, mode: str):
    """Fields of one point along a side are as those that do not vary along it."""
    x = field(3, 1, size)
    y = upsample(x, 2, mode)
    torch.testing.assert_close(y, upsample(x.expand(3, 8, size), 2, mode)[:, :2])
    torch.testing.assert_close(upsample(x.roll(1, dims=-1), 2, mode), y.roll(2, dims=-1))
    torch.testing.assert_close(upsample(x.mT, 2, mode), y.mT)


@pytest.mark.parametrize("function", [vorticity, divergence, enstrophy, energy_spectrum])
@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (2,)])
def test_what_is_no_velocity(function, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"x must be a velocity field \(\*, 2, H, W\), got shape"):
        function(torch.zeros(shape))


def test_bad_factor():
    with pytest.raises(ValueError, match=r"r must divide .*, got 3 for \(2, 8, 9\)"):
        coarsen(torch.zeros(2, 8, 9), 3)
    with pytest.raises(ValueError, match=r"r must divide .*, got 0"):
        coarsen(torch.zeros(8, 8), 0)
    with pytest.raises(ValueError, match=r"r positive, got .* and 0"):
        upsample(torch.zeros(8, 8), 0)


def test_log_spectral_distance():
    """Twice the velocity is four times the energy, in every shell; and the mean is of energies."""
    x = field(3, 4, 2, 16, 16)
    assert log_spectral_distance(x, x) == 0
    assert log_spectral_distance(2 * x, x) == pytest.approx(10 * math.log10(4))
    assert log_spectral_distance(x[0], x) == pytest.approx(log_spectral_distance(x, x[0]))
    assert log_spectral_distance(torch.cat((x, x)), x) == pytest.approx(0, abs=1e-12)

    # one shell of seven, three times as strong; beyond the whole shells nothing counts
    a, b = mesh(16, 16)
    wave = torch.stack((torch.zeros(16, 16), (3 * a).cos()))
    base = torch.stack((sum((k * b).sin() for k in range(1, 8)), torch.zeros(16, 16)))
    strong = base + math.sqrt(2) * wave
    assert log_spectral_distance(strong, base) == pytest.approx(10 * math.log10(3) / math.sqrt(7))
    corner = 100 * ((8 * a).cos() * (8 * b).cos()).expand(2, 16, 16)
    assert log_spectral_distance(base + corner, base) == pytest.approx(0, abs=1e-10)

    # shells without energy in both, or in one
    some, none = field(2, 8, 8), torch.zeros(2, 8, 8)
    assert log_spectral_distance(none, none) == 0
    assert log_spectral_distance(some, none) == log_spectral_distance(none, some) == math.inf

    for shape in ((2, 2, 2), (2, 3, 3), (5, 2, 16, 3)):
        with pytest.raises(ValueError, match="4 or more points along each side, but have shapes"):
            log_spectral_distance(field(*shape), field(*shape))
    with pytest.raises(ValueError, match=r"one grid, but have shapes \(2, 8, 8\) and \(2, 8, 9\)"):
        log_spectral_distance(torch.zeros(2, 8, 8), torch.zeros(2, 8, 9))


def test_temporal_correlation():
    """A wave that moves a quarter of its length each state: 1, 0, -1, 0, and so on."""
    a, _ = mesh(16, 16)
    waves = [(2 * a - phase - i * math.pi / 2).cos() for phase in (0, 1) for i in range(6)]
    x = torch.stack(waves).reshape(2, 6, 1, 16, 16)
    expected = torch.tensor([1, 0, -1, 0, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(temporal_correlation(x), expected)
    torch.testing.assert_close(temporal_correlation(x[0]), expected)
    assert abs(float(temporal_correlation(field(4, 2, 2, 16, 16))[1])) < 0.1

    with pytest.raises(ValueError, match=r"\(\*, L, C, H, W\), got shape \(2, 8, 8\)"):
        temporal_correlation(torch.zeros(2, 8, 8))
