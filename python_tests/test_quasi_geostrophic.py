"""The two-layer quasi-geostrophic model, against its equations in Fourier space."""

import math
import sys

import pytest
import torch
from torch import Generator, Tensor

from sda_fast.data import Recipe, simulate_block
from sda_fast.systems import QuasiGeostrophic

N, L, DAY = 32, 1e6, 86400.0
U, BETA, DRAG = 0.025, 1.5e-11, 5.787e-7
F1 = 1 / (15e3**2 * 1.25)
F2 = 0.25 * F1


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def quiet(**parameters: float) -> QuasiGeostrophic:
    pytest.importorskip("pyqg_jax")
    return QuasiGeostrophic(N, **parameters)


def inversion(k2: Tensor) -> Tensor:
    """Returns the matrices (*, 2, 2) of q to psi at squared wavenumbers (*)."""
    rows = (torch.stack((-(k2 + F1), F1 + 0 * k2), -1), torch.stack((F2 + 0 * k2, -(k2 + F2)), -1))
    return torch.linalg.inv(torch.stack(rows, -2))


def energy(q: Tensor) -> Tensor:
    """Returns the energy of states (*, 2, N, N), kinetic and potential, per depth: -<psi q> / 2
    over layers of which the upper one has a fifth of the depth."""
    k = 2 * math.pi / L * torch.fft.fftfreq(N, d=1 / N, dtype=torch.float64)
    k2 = (k[:, None] ** 2 + k**2).clamp(min=(2 * math.pi / L) ** 2)
    qh = torch.fft.fft2(q)
    qh[..., 0, 0] = 0
    psi = torch.einsum("yxij,...jyx->...iyx", inversion(k2).to(qh.dtype), qh)
    psi = torch.fft.ifft2(psi).real
    return -(torch.tensor([0.2, 0.8]).double() * (psi * q).mean(dim=(-2, -1))).sum(dim=-1) / 2


def eddies(seed: int = 0, waves: int = 3) -> Tensor:
    """Returns large-scale anomalies of potential vorticity, of 5e-6 / s, in float64."""
    z = torch.randn(2, N, N, generator=generator(seed), dtype=torch.float64)
    k = torch.fft.fftfreq(N, d=1 / N).abs()
    low = (k[:, None] <= waves) & (k <= waves)
    low[0, 0] = False
    q = torch.fft.ifft2(torch.fft.fft2(z) * low).real
    return 5e-6 * q / q.std()


@pytest.mark.parametrize("shape", [(), (3,), (0,)])
def test_shapes(shape: tuple[int, ...]):
    chain = quiet(steps=2)
    x = chain.prior(shape, generator=generator())
    assert x.shape == (*shape, 2, N, N)
    assert x.dtype == chain.transition(x).dtype == torch.float32
    assert chain.transition(x.double()).dtype == torch.float64
    assert chain.transition(x.long()).dtype == torch.float32
    assert chain.trajectory(x, 2).shape == (2, *x.shape)
    assert torch.equal(chain.prior(shape, generator=generator()), x)


@pytest.mark.parametrize("n", [2, 5])
def test_growth_of_a_wave(n: int):
    """A wave along x is an exact solution, and grows or decays by a matrix exponential: baroclinic
    instability, by the dispersion relation of Phillips' model with drag."""
    k = 2 * math.pi * n / L
    P = inversion(torch.tensor(k**2, dtype=torch.float64)).to(torch.complex128)
    mean = torch.tensor([U, 0.0]).double().diag()
    gradient = torch.tensor([BETA + F1 * U, BETA - F2 * U]).double().diag()
    drag = torch.tensor([0.0, DRAG * k**2], dtype=torch.complex128).diag()
    M = -1j * k * (mean + gradient.to(P.dtype) @ P) + drag @ P

    x = torch.arange(N, dtype=torch.float64) * L / N
    a = torch.tensor([1e-6, 3e-7 + 2e-7j], dtype=torch.complex128)
    wave = torch.exp(1j * k * x)

    def field(a: Tensor) -> Tensor:
        return (a[:, None, None] * wave).real.expand(2, N, N)

    after = quiet(dt=10 * DAY, steps=120).transition(field(a))
    expected = field(torch.linalg.matrix_exp(M * 10 * DAY) @ a)
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-12)


def test_energy_is_conserved():
    """By the nonlinear terms and beta: no mean flow, no drag, and scales that no filter reaches."""
    chain, q = quiet(U=0.0, drag=0.0, dt=DAY, steps=12), eddies()
    states = torch.cat((q[None], chain.trajectory(q, 3)))
    torch.testing.assert_close(energy(states), energy(q).expand(4), rtol=1e-5, atol=0)
    assert (states[-1] - q).std() > 0.3 * q.std()
    assert states.mean(dim=(-2, -1)).abs().max() < 1e-6 * q.std()


def test_drag_takes_energy():
    q = eddies()
    after = quiet(U=0.0, dt=2 * DAY).transition(q)
    assert energy(after) < 0.99 * energy(q)


def test_symmetry():
    """The law is the same everywhere in the square."""
    chain, q = quiet(), eddies()
    moved = q.roll((3, 5), dims=(-2, -1))
    torch.testing.assert_close(
        chain.transition(moved),
        chain.transition(q).roll((3, 5), dims=(-2, -1)),
        rtol=1e-9,
        atol=1e-15,
    )


def test_markov_chain():
    """Two transitions are a longer one, and a state does not depend on its batch."""
    q = torch.stack((eddies(0), eddies(1)))
    day = quiet(steps=6)
    twice = day.transition(day.transition(q))
    torch.testing.assert_close(quiet(dt=2 * DAY, steps=12).transition(q), twice, rtol=1e-9, atol=0)
    assert torch.equal(day.transition(q[1]), day.transition(q)[1])


def test_data_set():
    pytest.importorskip("pyqg_jax")
    recipe = Recipe(
        "quasi_geostrophic", {"size": 16, "steps": 2}, trajectories=3, length=4, burn_in=2, block=2
    )
    block = simulate_block(recipe, 1)
    assert block.shape == (1, 4, 2, 16, 16)
    assert recipe.shape == (3, 4, 2, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 9}, "size must be even and at least 8, got 9"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"dt": 0.0}, "dt must be positive, got 0"),
        ({"radius": -1.0}, "radius must be positive, got -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        QuasiGeostrophic(**arguments)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 2, 32, 32\), got"):
        quiet().transition(torch.zeros(1, 32, 32))


@pytest.mark.parametrize("missing", ["jax", "pyqg_jax"])
def test_without_its_solver(missing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"needs pyqg-jax and jax < 0\.6: .*quasigeostrophic\]"):
        QuasiGeostrophic()
