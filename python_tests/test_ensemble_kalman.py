"""The ensemble Kalman smoother: for linear-Gaussian chains it comes to be the Kalman smoother."""

import pytest
import torch
from chains import STD, H, L, covariances, observe, rotation
from torch import Generator, Tensor

from sda_fast import Lorenz96
from sda_fast.evaluation import (
    Observation,
    ensemble_kalman_smoother,
    gaspari_cohn,
    kalman_filter,
    rts_smoother,
)


def run(n: int, **kwargs) -> Tensor:
    chain = rotation()
    observation, _ = observe()
    generator = Generator().manual_seed(1)
    x = chain.first.sample((n,), generator=generator)
    return ensemble_kalman_smoother(chain, observation, x, generator=generator, **kwargs)


def test_it_is_the_kalman_smoother():
    """Within five standard errors, of 2^16 members; and 2^8 are further away."""
    chain = rotation()
    _, linear = observe()
    smoothed = rts_smoother(chain, linear, L)
    variance = smoothed.covariance.diagonal(dim1=-2, dim2=-1)
    prior = chain.first.covariance.diagonal().max()

    errors = []
    for n in (2**8, 2**16):
        x = run(n)
        assert x.shape == (n, L, 2)
        # the error of the gain is that of the prior's covariances
        bound = 5 * (prior / n) ** 0.5
        assert ((x.mean(dim=0) - smoothed.mean).abs() < bound).all()
        assert ((covariances(x) - smoothed.covariance).abs() < bound * prior**0.5).all()
        errors.append(float((x.mean(dim=0) - smoothed.mean).norm() / variance.sum().sqrt()))
    assert errors[1] < 0.2 * errors[0]


def test_without_lag_it_is_the_filter():
    chain = rotation()
    _, linear = observe()
    _, filtered = kalman_filter(chain, linear, L)
    x = run(2**16, lag=0)
    assert ((x.mean(dim=0) - filtered.mean).abs() < 0.02).all()
    assert ((covariances(x) - filtered.covariance).abs() < 0.03).all()


def test_lag():
    """An observation moves as many states as the lag says, and its own."""
    chain = rotation()
    observation, _ = observe((9,))
    x = {}
    for lag in (0, 2, None):
        generator = Generator().manual_seed(1)
        start = chain.first.sample((8,), generator=generator)
        x[lag] = ensemble_kalman_smoother(
            chain, observation, start, lag=lag, length=10, generator=generator
        )
    changed = (x[2] != x[0]).any(dim=0).any(dim=-1)
    assert changed.tolist() == [7 <= i < 9 for i in range(10)]
    changed = (x[None] != x[0]).any(dim=0).any(dim=-1)
    assert changed.tolist() == [i < 9 for i in range(10)]


def test_inflation_scales_the_forecast():
    """One observation of the first state: the analysis is Kalman's, of the inflated variance."""
    chain, n = rotation(), 2**15
    observation, _ = observe((0,))
    generator = Generator().manual_seed(1)
    start = chain.first.sample((n,), generator=generator)
    x = ensemble_kalman_smoother(
        chain, observation, start, length=1, inflation=1.5, generator=generator
    )
    S, R = 1.5**2 * chain.first.covariance, torch.tensor([[STD**2]]).double()
    expected = S - S @ H.T @ torch.linalg.inv(H @ S @ H.T + R) @ H @ S
    assert ((x[:, 0].T.cov() - expected).abs() < 5 * float(S.max()) * (2 / n) ** 0.5).all()


def test_localisation():
    """Lorenz-96 with ten members, all sites observed: states beyond the radius are left alone, and
    the analysis is better."""
    chain, n = Lorenz96(n=32), 10
    truth = chain.trajectory(chain.prior(), 500, last=True)
    x = truth + torch.randn(1, 32) + torch.randn(n, 32)
    site = torch.arange(32)
    apart = (site[:, None] - site).abs()
    factors = gaspari_cohn(torch.minimum(apart, 32 - apart).double(), 6)

    one = torch.full((1, 32), torch.nan)
    one[0, 5] = 3.0
    moved, free = (
        ensemble_kalman_smoother(
            chain,
            Observation(y, lambda x: x, 0.5),
            x,
            localisation=(factors, factors),
            generator=Generator().manual_seed(0),
        )
        for y in (one, torch.full((1, 32), torch.nan))
    )
    assert ((moved != free).any(dim=0)[0] == (factors[5] > 0)).all()

    errors = {}
    now = chain.transition(truth)
    everywhere = Observation(now[None] + 0.5 * torch.randn(1, 32), lambda x: x, 0.5)
    for name, localisation in (("local", (factors, factors)), ("global", None)):
        analysis = ensemble_kalman_smoother(chain, everywhere, x, localisation=localisation)
        errors[name] = float((analysis[:, 0].mean(dim=0) - now).square().mean().sqrt())
    assert errors["local"] < 0.8 * errors["global"]


def test_gaspari_cohn():
    r = torch.linspace(0, 3, 301, dtype=torch.float64)
    factor = gaspari_cohn(r, 2.0)
    assert factor[0] == 1
    assert factor[100] == pytest.approx(5 / 24)  # at c
    assert (factor[200:] == 0).all()
    assert (factor.diff() <= 0).all()
    # twice continuously differentiable: the second difference has no jump
    assert factor.diff(n=2).diff().abs().max() < 1e-5
    # a correlation function: on a line its matrices have no negative eigenvalue
    matrix = gaspari_cohn((r[:, None] - r).abs(), 1.0)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


def test_partly_observed_is_less_observed():
    """What is NaN counts as not there."""
    chain = rotation()
    x = chain.first.sample((20,))
    y = torch.tensor([[0.3, torch.nan]]).double()
    both, one = (
        ensemble_kalman_smoother(
            chain, Observation(*pair, 0.5), x, generator=Generator().manual_seed(0)
        )
        for pair in ((y, lambda x: x), (y[:, :1], lambda x: x[..., :1]))
    )
    torch.testing.assert_close(both, one)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lag": -1}, "lag must not be negative, but is -1"),
        ({"inflation": 0.0}, "inflation must be positive, but is 0.0"),
        ({"length": 0}, "length be 1 at least"),
        ({"n": 1}, "x must have 2 members"),
    ],
)
def test_arguments(kwargs, message: str):
    with pytest.raises(ValueError, match=message):
        run(**{"n": 4} | kwargs)


def test_divergence_is_an_error():
    chain = Lorenz96(n=8, dt=1.0)
    observation = Observation(torch.full((50, 1), torch.nan), lambda x: x[..., :1], 1.0)
    with pytest.raises(FloatingPointError, match=r"a state of step \d+ is not finite"):
        ensemble_kalman_smoother(chain, observation, 10 * chain.prior((3,)))


def test_whole_numbers():
    """Initial states of whole numbers are states like others: nothing is truncated."""
    chain = rotation()
    observation, _ = observe()
    x = torch.arange(100).reshape(50, 2) % 3
    one, two = (
        ensemble_kalman_smoother(chain, observation, x, generator=Generator().manual_seed(0))
        for x in (x, x.float())
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, one.round())


def test_operator_of_a_wrong_shape():
    chain = rotation()
    observation = Observation(torch.zeros(1, 1), lambda x: x, 1.0)
    with pytest.raises(ValueError, match=r"A must map states .* \(4, 1\), but gives \(4, 2\)"):
        ensemble_kalman_smoother(chain, observation, chain.first.sample((4,)))
