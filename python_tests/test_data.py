"""Training data: simulated trajectories and windows of them."""

import pytest
import torch
from torch import Generator, Tensor

from sda_fast import Lorenz63, Lorenz96, LotkaVolterra, MarkovChain, NoisyLorenz63
from sda_fast.data import draw_windows, simulate


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_simulation():
    """Standardised trajectories that went on for `burn_in` transitions before they begin."""
    chain = Lorenz63(dt=0.025)
    data = simulate(chain, 4, 6, burn_in=3, generator=generator())
    x = chain.trajectory(chain.prior((4,), generator=generator()), 9)[3:]

    assert data.shape == (4, 6, 3)
    assert data.is_contiguous()
    torch.testing.assert_close(chain.postprocess(data), x.transpose(0, 1))


def test_simulation_is_the_generators():
    chain = NoisyLorenz63(dt=0.025)
    data = simulate(chain, 4, 6, generator=generator())
    assert torch.equal(data, simulate(chain, 4, 6, generator=generator()))
    assert not torch.equal(data, simulate(chain, 4, 6, generator=generator(1)))
    assert data.std() == pytest.approx(1.0, abs=0.3)


def test_simulation_of_another_system():
    assert simulate(LotkaVolterra(), 2, 5, burn_in=0).shape == (2, 5, 2)


def test_simulation_that_explodes():
    message = "simulation of Lorenz63 is not finite: choose a smaller dt or more integration steps"
    with pytest.raises(RuntimeError, match=message):
        simulate(Lorenz63(dt=0.5), 4, 6, generator=generator())


def test_vectors_are_not_coarsened():
    """The means over blocks would be over trajectories."""
    with pytest.raises(ValueError, match="coarsen must be 1 for states that are no fields, got 2"):
        simulate(Lorenz96(n=8), 4, 6, coarsen=2)


class Counter(MarkovChain):
    """A chain whose states say where they are."""

    def prior(self, shape=(), *, generator=None) -> Tensor:
        n = torch.Size(shape).numel()
        return (1000.0 * torch.arange(n)).reshape(*shape, 1)

    def transition(self, x: Tensor, *, generator=None) -> Tensor:
        return x + 1


@pytest.mark.parametrize(("length", "window"), [(6, 1), (6, 5), (6, 6), (20, 9)])
def test_windows(length: int, window: int):
    """Consecutive states of one trajectory, any place equally often."""
    data = simulate(Counter(), 3, length, burn_in=0)
    n = 6000
    windows = draw_windows(data, n, window, generator=generator())[..., 0]

    assert windows.shape == (n, window)
    assert (windows.diff(dim=1) == 1).all()
    which, place = windows[:, 0] // 1000, windows[:, 0] % 1000 - 1
    assert (place + window <= length).all()
    count = torch.bincount((which * 100 + place).long())
    count = count[count > 0].float()
    places = 3 * (length - window + 1)
    assert len(count) == places
    p = 1 / places
    assert ((count - n * p).abs() < 5 * (n * p * (1 - p)) ** 0.5).all()


def test_windows_are_the_generators():
    data = torch.randn(5, 20, 2, 3)
    windows = draw_windows(data, 7, 4, generator=generator())
    assert windows.shape == (7, 4, 2, 3)
    assert torch.equal(windows, draw_windows(data, 7, 4, generator=generator()))
    assert not torch.equal(windows, draw_windows(data, 7, 4, generator=generator(1)))


def test_windows_longer_than_the_trajectories():
    with pytest.raises(
        ValueError, match="window must be at most the trajectories' 6 states, got 7"
    ):
        draw_windows(torch.randn(5, 6, 3), 2, 7)
