"""The networks that the studies of Lorenz-63 train themselves."""

import pytest
import torch
from torch import Generator, nn

from experiments.fit import fit
from experiments.lorenz import cases, parameter, trajectory_network
from experiments.lorenz.posterior import SETTINGS
from sda_fast import VPSDE, NoisyLorenz63
from sda_fast.training.loss import squared_error

# Fitting


def regression(network):
    x = torch.randn(64, 2)
    return (network(x)[:, 0] - x @ torch.tensor([1.0, -2.0])).square().mean()


def linear():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def test_fit_learns(tmp_path):
    path = tmp_path / "folder" / "a.safetensors"
    fitted = fit(linear(), regression, path, iterations=200, learning_rate=0.05, ema=0.9)
    torch.testing.assert_close(fitted.weight, torch.tensor([[1.0, -2.0]]), atol=0.02, rtol=0)
    assert not any(p.requires_grad for p in fitted.parameters())

    # what the file holds is not trained again
    again = fit(linear(), None, path, iterations=400)
    assert torch.equal(again.weight, fitted.weight)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_fit_goes_on_where_it_ended(tmp_path):
    whole = fit(linear(), regression, tmp_path / "a.safetensors", iterations=30, every=10)
    calls = []

    def interrupted(network):
        calls.append(None)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return regression(network)

    path = tmp_path / "b.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(linear(), interrupted, path, iterations=30, every=10)
    calls.clear()
    parted = fit(linear(), interrupted, path, iterations=30, every=10)
    assert len(calls) == 10
    assert torch.equal(parted.weight, whole.weight)


# Over whole trajectories


def test_trajectory_network_sees_fourteen_states(small_cases):
    network = trajectory_network.build()
    x = torch.randn(1, 65, 3, requires_grad=True)
    network(x, torch.tensor(0.5))[0, 32].sum().backward()
    seen = x.grad[0].abs().sum(dim=1).nonzero().flatten()
    assert seen.tolist() == list(range(32 - 14, 32 + 15))
    assert trajectory_network.loss(network).isfinite()


# Of any rho


def test_any_lorenz():
    """With rho as its fourth variable the system is that of this rho."""
    generator = Generator().manual_seed(0)
    x = parameter.system.prior((64,), generator=generator)
    assert x[:, 3].min() >= parameter.LOW
    assert x[:, 3].max() <= parameter.HIGH

    mean, _ = parameter.system.moments(x)
    for before, after in zip(x, mean, strict=True):
        chain = NoisyLorenz63(dt=0.025, rho=float(before[3]))
        torch.testing.assert_close(after[:3], chain.moments(before[:3])[0])
    y = parameter.system.transition(x, generator=generator)
    assert torch.equal(y[:, 3], x[:, 3])
    assert (y - mean)[:, :3].std() == pytest.approx(0.025**0.5, rel=0.2)
    torch.testing.assert_close(parameter.system.postprocess(parameter.system.preprocess(x)), x)


@pytest.mark.filterwarnings("ignore:the effective sample size:RuntimeWarning")
def test_exact_posterior_of_rho(small_cases, monkeypatch):
    """Where all is seen it is near the truth's, and alike in two runs."""
    monkeypatch.setattr(parameter, "GRID", 17)
    monkeypatch.setattr(parameter, "PARTICLES", 1024)
    truth, generator = cases.simulate(0, NoisyLorenz63(dt=0.025, rho=32.0))
    observation = cases.observe(cases.Instrument(1, 0.1, lambda x: x), truth, generator)
    means = []
    for run in (1, 2):
        x = parameter.filtered(observation, run, 0, 128)
        assert x.shape == (128, 65, 4)
        assert bool((x[:, :, 3] == x[:, :1, 3]).all())
        means.append(float(x[:, 0, 3].mean()))
        assert (x[:, :, 0] - truth[:, 0]).square().mean().sqrt() < 2
    assert means == pytest.approx([32.0, 32.0], abs=1.0)
    assert means[0] == pytest.approx(means[1], abs=0.5)


@pytest.mark.parametrize("joint", [False, True])
def test_parameter_networks(joint, small_cases, tmp_path):
    sde = parameter.load(joint, tmp_path, width=8, iterations=2)
    assert sde.shape == (65, 4 if joint else 3)
    case = cases.make_case(SETTINGS["lo"], 0, 4)
    guided = cases.guide(case, SETTINGS["lo"], sde)
    options = {"seed": 0, "steps": 2, "corrections": 0, "tau": 0.5}
    if joint:
        x = cases.draw(guided, 2, system=parameter.system, **options)
        assert x.shape == (2, 65, 4)
        return
    low, high = (cases.draw(guided, 2, context=parameter.context(r), **options) for r in (20, 36))
    assert not torch.allclose(low, high)


def test_loss_takes_context():
    """What a window is told is what its kernel is told, beside the mask."""
    network = parameter.build(joint=False, width=8)
    x, eps = torch.randn(2, 5, 9, 3)
    t, c = torch.rand(5), torch.randn(5, 1)
    length = torch.tensor([9, 7, 5, 3, 1])
    sde = VPSDE(network, (9, 3))
    losses = squared_error(network, x, eps, t, length, sde, context=c)
    for i, n in enumerate(length.tolist()):
        mask = (torch.arange(9) < n).float()
        noisy = sde.mu(t[i]) * x[i] + sde.sigma(t[i]) * eps[i]
        told = torch.cat((c[i], mask))
        estimate = network.kernel((noisy * mask[:, None]).flatten(), t[i], told).unflatten(
            0, (9, 3)
        )
        expected = (estimate - eps[i])[:n].square().mean()
        torch.testing.assert_close(losses[i], expected)
