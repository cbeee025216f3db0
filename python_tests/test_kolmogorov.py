"""Kolmogorov flow, on coarse grids. What needs no jax-cfd is in test_systems_flow.py."""

import pickle
import sys

import pytest
import torch
from torch import Generator

from sda_fast import KolmogorovFlow
from sda_fast.systems.flow import coarsen, divergence, energy_spectrum, vorticity


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def chain() -> KolmogorovFlow:
    pytest.importorskip("jax_cfd")
    return KolmogorovFlow(size=32, dt=0.05)


def test_defaults():
    pytest.importorskip("jax_cfd")
    chain = KolmogorovFlow()
    assert (chain.size, chain.dt, chain.reynolds) == (256, 0.01, 1e3)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_shapes(chain: KolmogorovFlow, shape: tuple[int, ...]):
    x = chain.prior(shape)
    assert x.shape == (*shape, 2, 32, 32)
    assert x.dtype == torch.float32
    assert chain.transition(x.double()).dtype == torch.float32
    assert chain.transition(x).shape == x.shape
    assert chain.trajectory(x, 2).shape == (2, *x.shape)
    assert chain.coarsen(x, 4).shape == (*shape, 2, 8, 8)
    assert chain.vorticity(x).shape == (*shape, 32, 32)


def test_prior(chain: KolmogorovFlow):
    """Greatest speed 3, at wavenumbers about 4, and no mean flow."""
    x = chain.prior((16,), generator=generator())
    torch.testing.assert_close(
        x.square().sum(dim=-3).sqrt().amax(dim=(-2, -1)), torch.full((16,), 3.0)
    )
    spectrum = energy_spectrum(x).mean(dim=0)
    assert 3 <= spectrum.argmax() <= 5
    assert spectrum[0] < 0.01 * spectrum.sum()
    assert (x[0] - x[1]).std() > 0.5


def test_divergence_stays_zero(chain: KolmogorovFlow):
    """To rounding: velocities of order 3 over a spacing of 0.2."""
    x = chain.prior((4,), generator=generator())
    states = torch.cat((x[None], chain.trajectory(x, 8)))
    assert divergence(states).abs().max() < 1e-4
    assert vorticity(states).abs().max() > 5


def test_forcing(chain: KolmogorovFlow):
    r"""A fluid at rest is accelerated by sin 4y, along x only: after a short time, u = t sin 4y.

    Velocities along x are at the middles of cells in y.
    """
    y = 2 * torch.pi / 32 * (torch.arange(32) + 0.5)
    x = chain.transition(torch.zeros(2, 32, 32))
    # drag of 0.1 and viscosity of 0.016 take less than 1 % of it
    torch.testing.assert_close(
        x[0], (0.05 * (4 * y).sin()).expand(32, 32), rtol=0, atol=0.01 * 0.05
    )
    assert x[1].abs().max() < 1e-6


def test_a_long_transition_is_short_ones(chain: KolmogorovFlow):
    """The stable step is 0.0196 here: 0.05 is three of them, 0.1 six of the same."""
    x = chain.prior((2,), generator=generator())
    twice = chain.transition(chain.transition(x))
    torch.testing.assert_close(KolmogorovFlow(32, dt=0.1).transition(x), twice)
    assert (twice - x).std() > 0.1


def test_randomness_is_the_generators(chain: KolmogorovFlow):
    assert torch.equal(
        chain.prior((3,), generator=generator()), chain.prior((3,), generator=generator())
    )
    assert not torch.equal(chain.prior(generator=generator()), chain.prior(generator=generator(1)))
    torch.manual_seed(3)
    first = chain.prior()
    torch.manual_seed(3)
    assert torch.equal(chain.prior(), first)


def test_states_are_independent_of_their_batch(chain: KolmogorovFlow):
    x = chain.prior((3, 2), generator=generator())
    assert torch.equal(chain.prior((6,), generator=generator()).reshape(x.shape), x)
    assert torch.equal(chain.prior((2,), generator=generator()), x[0])
    y = chain.transition(x)
    assert torch.equal(chain.transition(x[1]), y[1])
    assert torch.equal(chain.transition(x[1, 1]), y[1, 1])
    assert torch.equal(chain.transition(x.transpose(0, 1)), y.transpose(0, 1))


def test_configuration_of_jax(chain: KolmogorovFlow):
    """It is left alone, and does not change the numbers."""
    jax = pytest.importorskip("jax")
    from sda_fast.systems import kolmogorov

    x = chain.prior(generator=generator())
    y = chain.transition(x)
    assert not jax.config.jax_enable_x64
    kolmogorov._solver.cache_clear()
    jax.config.update("jax_enable_x64", True)
    try:
        assert torch.equal(chain.prior(generator=generator()), x)
        assert torch.equal(chain.transition(x), y)
        assert jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", False)


def test_solver_is_compiled_once():
    """For flows of the same parameters."""
    pytest.importorskip("jax_cfd")
    from sda_fast.systems import kolmogorov

    for shape in ((), (3,)):
        chain = KolmogorovFlow(16, dt=0.05)
        chain.transition(chain.prior(shape))
    assert kolmogorov._solver(16, 0.05, 1000.0).transition._cache_size() == 1


def test_coarse_states_keep_the_large_scales(chain: KolmogorovFlow):
    x = chain.prior((4,), generator=generator())
    fine, coarse = energy_spectrum(x), energy_spectrum(coarsen(x, 2))
    torch.testing.assert_close(coarse[:, :3], fine[:, :3], rtol=0.15, atol=0.01)


def test_pickle(chain: KolmogorovFlow):
    x = chain.prior(generator=generator())
    assert torch.equal(pickle.loads(pickle.dumps(chain)).transition(x), chain.transition(x))


@pytest.mark.parametrize("shape", [(2, 16, 16), (32, 32), (3, 32, 32), (2, 32, 16)])
def test_wrong_shape(chain: KolmogorovFlow, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"x must have shape \(\*, 2, 32, 32\), got"):
        chain.transition(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4}, r"size must be at least 8, .* got 4"),
        ({"dt": 0.0}, "dt must be positive, got 0"),
        ({"reynolds": -1.0}, "reynolds must be positive, got -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        KolmogorovFlow(**arguments)


@pytest.mark.parametrize("missing", ["jax", "jax_cfd.base"])
def test_without_jax(missing: str, monkeypatch: pytest.MonkeyPatch):
    """A sentence that names the extra. The package itself needs none of it."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ImportError, match=r"needs jax-cfd and jax < 0\.6: .*sda-fast\[kolmogorov\]"
    ):
        KolmogorovFlow()


def test_too_new_a_jax(monkeypatch: pytest.MonkeyPatch):
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(jax, "__version_info__", (0, 7, 1))
    monkeypatch.setattr(jax, "__version__", "0.7.1")
    with pytest.raises(ImportError, match=r"sda-fast\[kolmogorov\]' \(jax is 0\.7\.1\)"):
        KolmogorovFlow()
