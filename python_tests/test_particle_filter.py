"""The bootstrap particle filter, against the Kalman filter and smoother."""

import math

import pytest
import torch
from chains import L, covariances, observe, rotation
from torch import Generator

from sda_fast import Lorenz63, NoisyLorenz63
from sda_fast.evaluation import (
    Gaussian,
    Observation,
    Particles,
    kalman_filter,
    particle_filter,
    rts_smoother,
    systematic,
)

N = 2**15


def run(threshold: float = 1.0, n: int = N):
    chain = rotation()
    observation, linear = observe()
    generator = Generator().manual_seed(1)
    x = chain.first.sample((n,), generator=generator)
    particles = particle_filter(chain, observation, x, threshold=threshold, generator=generator)
    return chain, linear, particles


@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.0])
def test_filter_is_kalmans(threshold: float):
    """Within five standard errors, those of the effective sample sizes so far."""
    chain, linear, particles = run(threshold)
    _, (mean, covariance) = kalman_filter(chain, linear, L)

    variance = covariance.diagonal(dim1=-2, dim2=-1)
    error = 5 * (1 / particles.ess).cumsum(dim=0).sqrt()[:, None]
    assert ((particles.mean() - mean).abs() < error * variance.sqrt()).all()
    assert ((particles.variance() / variance - 1).abs() < math.sqrt(2) * error).all()


@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.0])
def test_log_likelihood(threshold: float):
    chain, linear, particles = run(threshold)
    mean, covariance = chain.joint(L)
    rows = linear.matrix(L)
    law = Gaussian(rows @ mean, rows @ covariance @ rows.T + linear.covariance())

    error = 5 * math.sqrt(float((1 / particles.ess[list(linear.times)]).sum()))
    expected = float(law.log_prob(linear.y.flatten()))
    assert particles.log_likelihood == pytest.approx(expected, abs=error)
    assert error < (0.2 if threshold else 0.5)


@pytest.mark.parametrize("threshold", [1.0, 0.0])
def test_ancestry_is_the_smoother(threshold: float):
    chain, linear, particles = run(threshold)
    smoothed = rts_smoother(chain, linear, L)
    x = particles.trajectories(generator=Generator().manual_seed(2))
    assert x.shape == (N, L, 2)

    # the sample size is that of distinct or of well-weighted particles, whichever is less
    size = torch.minimum(particles.distinct(), particles.ess.min())
    error = 5 * (2 / size).sqrt()[:, None]
    variance = smoothed.covariance.diagonal(dim1=-2, dim2=-1)
    assert ((x.mean(dim=0) - smoothed.mean).abs() < error * variance.sqrt()).all()
    scale = (variance[:, None] * variance[:, :, None]).sqrt()
    assert ((covariances(x) - smoothed.covariance).abs() < 2 * error[..., None] * scale).all()

    lag = torch.stack([torch.cat((x[:, i + 1], x[:, i]), -1).T.cov()[:2, 2:] for i in range(L - 1)])
    assert ((lag - smoothed.lag_one).abs() < 2 * error[1:, :, None] * scale[1:]).all()


def test_trajectories_are_of_the_chain():
    """Neighbouring states of a trajectory are a transition: a deterministic one, here."""
    chain = Lorenz63(dt=0.025)
    x = chain.trajectory(chain.prior((64,)), 100, last=True)
    y = torch.full((9, 3), math.nan)
    y[::4, 0] = x[0, 0]
    particles = particle_filter(chain, Observation(y, lambda x: x, 5.0), x)
    drawn = particles.trajectories(10)

    torch.testing.assert_close(chain.transition(drawn[:, :-1]), drawn[:, 1:])


def test_resampling_follows_the_threshold():
    _, linear, always = run(1.0)
    observed = torch.tensor([i in linear.times for i in range(L)])
    moved = (always.ancestors != torch.arange(N)).any(dim=1)
    assert (moved[1:] == observed[:-1]).all()

    _, _, never = run(0.0)
    assert (never.ancestors == torch.arange(N)).all()
    assert never.ess[-1] < always.ess[-1]

    _, _, some = run(0.5)
    moved = (some.ancestors != torch.arange(N)).any(dim=1)
    assert (moved[1:] == observed[:-1] & (some.ess[:-1] <= 0.5 * N)).all()
    assert 0 < moved.sum() < len(linear.times)


def test_nothing_observed():
    chain = rotation()
    observation, _ = observe(())
    x = chain.first.sample((100,))
    particles = particle_filter(chain, observation, x, length=5)
    assert particles.log_likelihood == 0
    assert (particles.ess == 100).all()
    assert (particles.distinct() == 100).all()
    assert particles.states.shape == (5, 100, 2)


def test_forecast():
    """States after the last observation are the chain's own, from the last posterior."""
    chain = rotation()
    observation, linear = observe()
    x = chain.first.sample((N,), generator=Generator().manual_seed(1))
    particles = particle_filter(
        chain, observation, x, length=L + 4, generator=Generator().manual_seed(1)
    )
    mean, covariance = rts_smoother(chain, linear, L + 4)[:2]
    variance = covariance[-1].diagonal()
    assert len(particles.states) == L + 4
    assert ((particles.mean()[-1] - mean[-1]).abs() < 0.05 * variance.sqrt()).all()
    assert ((particles.variance()[-1] / variance - 1).abs() < 0.05).all()


def test_distinct_counts_ancestors():
    _, _, particles = run(n=1000)
    # each of the last particles once
    last = particles.trajectories(1000)
    distinct = particles.distinct()
    assert distinct[-1] == 1000
    for i in range(L - 1):
        assert len(last[:, i].unique(dim=0)) <= distinct[i]
    assert (distinct[:-1] <= distinct[1:]).all()
    assert distinct[0] < 500


def test_seed():
    one, two = (run(n=100)[2] for _ in range(2))
    torch.testing.assert_close(one.states, two.states, rtol=0, atol=0)


def test_whole_numbers():
    """Initial states of whole numbers are states like others: nothing is truncated."""
    x = torch.ones(50, 3, dtype=torch.int64)
    observation = Observation(torch.ones(4, 1), lambda x: x[..., :1], 5.0)
    one, two = (
        particle_filter(
            NoisyLorenz63(dt=0.025), observation, x, generator=Generator().manual_seed(0)
        )
        for x in (x, x.float())
    )
    assert one.states.dtype == torch.float32
    assert torch.equal(one.states, two.states)


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_systematic(n: int):
    weights = torch.tensor([0.0, 0.1, 0.0, 0.35, 0.55, 0.0])
    for _ in range(20):
        index = systematic(weights, n)
        counts = index.bincount(minlength=6)
        expected = n * weights.double()
        assert ((counts - expected).abs() < 1 + 1e-6).all()
        assert (counts[weights == 0] == 0).all()
        assert index.tolist() == sorted(index.tolist())


def test_systematic_is_unbiased():
    weights, generator = torch.tensor([3.0, 1.0, 2.0]), Generator().manual_seed(0)
    counts = sum(
        systematic(weights, 1, generator=generator).bincount(minlength=3) for _ in range(6000)
    )
    expected = torch.tensor([3000.0, 1000.0, 2000.0])
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


# Errors


@pytest.mark.parametrize(
    "weights",
    [[], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [-1.0, 3.0], [[1.0, 2.0]], 1.0, [1e308] * 2],
    ids=str,
)
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match=r"weights must be of shape \(N\), none negative, .* sum"):
        systematic(torch.tensor(weights, dtype=torch.float64), 5)


def lorenz(log_likelihood):
    class Custom:
        def observed(self, step: int) -> bool:
            return step == 2

    Custom.log_likelihood = staticmethod(log_likelihood)
    chain = NoisyLorenz63(dt=0.025)
    return particle_filter(chain, Custom(), chain.prior((50,)), length=4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "50 have a likelihood that is NaN"),
        (-math.inf, "50 one of zero"),
        (math.inf, "50 an infinite"),
    ],
)
def test_no_weights(value: float, message: str):
    with pytest.raises(FloatingPointError, match=f"no weights at step 2: of 50 .*{message}"):
        lorenz(lambda i, x: torch.full((50,), value))


def test_diverged_particles_have_no_weight():
    def log_likelihood(i, x):
        return torch.where(torch.arange(50) < 20, math.nan, 0.0)

    particles = lorenz(log_likelihood)
    assert particles.ess[2] == pytest.approx(30)
    assert (particles.ancestors[3] >= 20).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_moments_leave_out_what_has_no_weight(value: float):
    states = torch.tensor([[1.0, value, 3.0]])[..., None]
    log_weights = torch.tensor([[0.25, 0.0, 0.75]]).double().log()
    particles = Particles(states, log_weights, torch.arange(3)[None], torch.ones(1), 0.0)
    assert float(particles.mean()) == pytest.approx(2.5)
    assert float(particles.variance()) == pytest.approx(0.75)


def test_degeneracy_is_told():
    with pytest.warns(RuntimeWarning, match=r"of 50 particles falls to 1.0 at step 2"):
        lorenz(lambda i, x: torch.where(torch.arange(50) == 7, 0.0, -1000.0))


def test_shape_of_a_likelihood():
    with pytest.raises(
        ValueError, match=r"one number for each of 50 particles, .* shape \(50, 3\)"
    ):
        lorenz(lambda i, x: x)


def test_arguments():
    chain = rotation()
    observation, _ = observe()
    x = chain.first.sample((10,))
    with pytest.raises(ValueError, match="threshold must be between 0 and 1, but is 2"):
        particle_filter(chain, observation, x, threshold=2)
    with pytest.raises(ValueError, match="must not be empty"):
        particle_filter(chain, observation, x[:0])


# Observations


def test_observation():
    y = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [0.0, 2.0]])
    observation = Observation(y, lambda x: x[..., :2], torch.tensor([0.5, 2.0]))
    x = torch.randn(5, 3)

    assert [observation.observed(i) for i in range(len(observation))] == [True, False, True]
    first, second = (torch.distributions.Normal(x[:, i].double(), s) for i, s in ((0, 0.5), (1, 2)))
    torch.testing.assert_close(observation.log_likelihood(0, x), first.log_prob(torch.tensor(1.0)))
    torch.testing.assert_close(
        observation.log_likelihood(2, x),
        first.log_prob(torch.tensor(0.0)) + second.log_prob(torch.tensor(2.0)),
    )
    assert (observation.log_likelihood(1, x) == 0).all()

    # of trajectories, also of those that go on beyond what was observed
    x = torch.randn(4, 5, 3)
    expected = sum(observation.log_likelihood(i, x[:, i]) for i in range(3))
    torch.testing.assert_close(observation.total_log_likelihood(x), expected)
    with pytest.raises(ValueError, match=r"last dimensions of y, \(3, 2\)"):
        observation.total_log_likelihood(x[:, :2])


def test_observation_arguments():
    with pytest.raises(ValueError, match=r"std must be positive, but its least is 0\.0"):
        Observation(torch.zeros(3, 1), lambda x: x, 0.0)
    with pytest.raises(ValueError, match=r"must broadcast to y, with shape \(3, 1\)"):
        Observation(torch.zeros(3, 1), lambda x: x, torch.ones(2))
