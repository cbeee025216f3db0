"""The law of the sampler's samples, against the sampler."""

import pytest
import torch

from experiments.composition import divergences
from sda_fast import VPSDE, Centre, Junction, sample
from sda_fast.evaluation import (
    Gaussian,
    GaussianEstimator,
    gaussian_wasserstein,
    kl_divergence,
    sampler_law,
)


def law(n: int, seed: int = 0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    mean = torch.randn(n, generator=generator, dtype=torch.float64)
    return Gaussian(mean, root @ root.T / n + 0.1 * torch.eye(n))


def test_kl_divergence():
    p, q = law(4, 1), law(4, 2)
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.MultivariateNormal(*x) for x in (p, q))
    )
    assert kl_divergence(p, q) == pytest.approx(float(expected))
    assert kl_divergence(p, p) == pytest.approx(0, abs=1e-12)


def test_gaussian_wasserstein():
    """Between laws of one set of axes it is the distance of means and standard deviations."""
    axes = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    means, stds = torch.randn(2, 4).double(), torch.rand(2, 4).double()
    p, q = (Gaussian(m, axes * s**2 @ axes.T) for m, s in zip(means, stds, strict=True))
    square = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
    assert gaussian_wasserstein(p, q) == pytest.approx(float(square.sqrt()))
    assert gaussian_wasserstein(q, p) == pytest.approx(gaussian_wasserstein(p, q))
    assert gaussian_wasserstein(p, p) == pytest.approx(0, abs=1e-7)

    # with other axes, by the square root of a matrix that is not symmetric
    p, q = law(4, 1), law(4, 2)
    product = torch.linalg.eigvals(p.covariance @ q.covariance).real.sqrt().sum()
    square = (p.mean - q.mean).square().sum() + (p.covariance + q.covariance).trace()
    assert gaussian_wasserstein(p, q) == pytest.approx(float((square - 2 * product).sqrt()))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_corrections_it_is_the_samplers_map(order: int):
    sde = VPSDE(torch.nn.Identity(), shape=(5,))
    sde.eps = GaussianEstimator(law(5), sde)
    probes = torch.cat((torch.zeros(1, 5), torch.eye(5))).double()

    images = sample(sde, (6,), steps=7, x1=probes, order=order)
    columns = images[1:] - images[0]
    mean, covariance = sampler_law(sde, sde.eps, steps=7, order=order)

    torch.testing.assert_close(mean, images[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance, columns.T @ columns, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 3])
def test_with_corrections_it_is_the_law_of_samples(order: int):
    n, members = 64, 4000  # many elements, so that delta varies little between samples
    sde = VPSDE(torch.nn.Identity(), shape=(n,))
    truth = Gaussian(torch.ones(n).double(), 0.25 * torch.eye(n).double())
    sde.eps = GaussianEstimator(truth, sde)

    options = {"steps": 8, "corrections": 2, "tau": 0.5, "order": order}
    x = sample(sde, (members,), seed=0, **options)
    mean, covariance = sampler_law(sde, sde.eps, **options)

    # five standard errors of the mean over samples and elements, and of the variance; the
    # expectation in delta costs the variance about 1 / n
    std = float(covariance[0, 0].sqrt())
    assert abs(float(x.mean() - mean.mean())) < 5 * std / (members * n) ** 0.5
    error = 5 * (2 / (members * n)) ** 0.5 + 1 / n
    assert float(x.var(dim=0).mean() / covariance[0, 0]) == pytest.approx(1, abs=error)


def test_more_steps_come_nearer():
    sde = VPSDE(torch.nn.Identity(), shape=(5,))
    sde.eps = GaussianEstimator(law(5), sde)
    errors = [kl_divergence(sampler_law(sde, sde.eps, steps=n), law(5)) for n in (16, 64, 256)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_compositions_cost_what_the_documentation_says():
    options = {"a": 0.98, "length": 33, "window": 9, "steps": 128, "tau": 0.25}
    for rule, states, expected in (
        (Centre(4), 225, [4.065, 0.520, 0.318]),
        (Junction(9, 4), 93, [2.407, 0.250, 0.187]),
    ):
        read, values = divergences(rule, **options)
        assert read == states
        assert values == pytest.approx(expected, abs=6e-4)
