"""Weak-constraint 4D-Var: the most probable trajectory of a linear-Gaussian chain is its mean."""

import math
from itertools import pairwise

import pytest
import torch
from chains import L, observe, rotation
from torch import Generator

from sda_fast import DampedSpring, NoisyLorenz63
from sda_fast.evaluation import (
    LinearGaussianChain,
    LinearObservation,
    Observation,
    four_d_var,
    rts_smoother,
)


def test_it_is_the_smoothers_mean():
    chain = rotation()
    observation, linear = observe()
    analysis = four_d_var(
        chain, observation, torch.zeros(L, 2).double(), chain.first.log_prob, tolerance=1e-7
    )
    expected = rts_smoother(chain, linear, L).mean

    torch.testing.assert_close(analysis.x, expected, rtol=0, atol=1e-6)
    assert analysis.converged
    assert analysis.gradient < 1e-6
    assert analysis.cost[-1] < analysis.cost[0]
    assert all(b <= a for a, b in pairwise(analysis.cost))


def test_it_is_the_smoothers_mean_for_a_spring():
    """An ill-conditioned problem: variances of transitions 0.1 and 0.01."""
    chain, length = LinearGaussianChain.of(DampedSpring(dt=0.1)), 33
    y = torch.full((length, 1), math.nan, dtype=torch.float64)
    y[::8] = torch.randn(5, 1, dtype=torch.float64)
    H = torch.eye(4)[:1].double()
    linear = LinearObservation(range(0, length, 8), H, 0.01 * torch.eye(1).double(), y[::8])
    observation = Observation(y, lambda x: x[..., :1], 0.1)
    analysis = four_d_var(
        chain, observation, torch.zeros(length, 4).double(), chain.first.log_prob, tolerance=1e-6
    )

    expected = rts_smoother(chain, linear, length).mean
    torch.testing.assert_close(analysis.x, expected, rtol=0, atol=1e-5)


def test_cost_is_the_negative_log_posterior():
    chain = rotation()
    observation, linear = observe()
    x = chain.joint(L).sample(generator=Generator().manual_seed(0)).reshape(L, 2)
    analysis = four_d_var(chain, observation, x, chain.first.log_prob)

    noise = torch.distributions.Normal(linear.matrix(L) @ x.flatten(), math.sqrt(linear.R))
    joint = chain.joint(L).log_prob(x.flatten()) + noise.log_prob(linear.y.flatten()).sum()
    assert analysis.cost[0] == pytest.approx(-float(joint), rel=1e-9)


def test_lorenz():
    """From a first guess two standard deviations away it comes near the truth, and is a stationary
    point: no small step in any direction is better."""
    chain, generator = NoisyLorenz63(dt=0.025), Generator().manual_seed(0)
    x0 = chain.trajectory(chain.prior(generator=generator), 200, last=True, generator=generator)
    truth = chain.trajectory(x0, 17, generator=generator)
    y = truth[:, :1] + 0.1 * torch.randn(17, 1, generator=generator)
    observation = Observation(y, lambda x: x[..., :1], 0.1)
    guess = truth + 2 * torch.randn(17, 3, generator=generator)
    analysis = four_d_var(chain, observation, guess)

    assert analysis.x.dtype == torch.float32
    assert analysis.converged
    assert (analysis.x - truth).square().mean() < 0.2 * (guess - truth).square().mean()

    def cost(x: torch.Tensor) -> torch.Tensor:
        fit = (y - x[:, :1]).square().sum() / (2 * 0.1**2)
        mean = super(NoisyLorenz63, chain).transition(x[:-1])
        return fit + (x[1:] - mean).square().sum() / (2 * chain.dt)

    best = analysis.x.double()
    for _ in range(20):
        step = 1e-2 * torch.randn(17, 3, generator=generator).double()
        assert cost(best) < cost(best + step)


def test_first_guess_of_whole_numbers():
    chain = rotation()
    observation, _ = observe()
    analysis = four_d_var(chain, observation, torch.zeros(L, 2, dtype=torch.int64))
    expected = four_d_var(chain, observation, torch.zeros(L, 2))
    assert analysis.x.abs().max() > 0.1
    assert torch.equal(analysis.x, expected.x)


def test_not_converged_is_told():
    chain = rotation()
    observation, _ = observe()
    with pytest.warns(RuntimeWarning, match="did not converge in 2 iterations"):
        analysis = four_d_var(chain, observation, torch.zeros(L, 2), iterations=2)
    assert not analysis.converged
    assert len(analysis.cost) == 3


def test_arguments():
    chain = rotation()
    observation, _ = observe()
    with pytest.raises(ValueError, match="x must be a finite trajectory"):
        four_d_var(chain, observation, torch.full((L, 2), math.nan))
    with pytest.raises(ValueError, match="tolerance must be positive, but is 0"):
        four_d_var(chain, observation, torch.zeros(L, 2), tolerance=0)
    with pytest.raises(FloatingPointError, match="cost of the first guess is inf"):
        four_d_var(chain, observation, torch.zeros(L, 2), lambda x: x.sum() - math.inf)
