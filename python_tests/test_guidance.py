"""Guidance against its formulas, and against the posterior where that is known."""

import math
from collections.abc import Callable

import oracles
import pytest
import torch
from torch import Tensor, nn

from sda_fast import VPSDE, DPSGaussianScore, GaussianScore, MCScoreNet, SubSubVPSDE, SubVPSDE
from sda_fast.evaluation import Gaussian, GaussianEstimator

L, D = 7, 3
PROCESSES = [VPSDE, SubVPSDE, SubSubVPSDE]

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "subset": lambda x: x[..., ::3, :1],
    "nonlinear": lambda x: torch.arctan(2 * x[..., 1:5, 0]) + x[..., 1:5, 1] ** 2,
    "mean": lambda x: x.mean(dim=(-1, -2)),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def prior(process: type[VPSDE] = VPSDE) -> VPSDE:
    network = MCScoreNet(D, context=1, order=2, hidden_features=[16], activation=nn.SiLU)
    return process(network, (L, D))


def levels(process: type[VPSDE]) -> tuple[Callable[[float], float], Callable[[float], float]]:
    name = process.__name__
    return (
        lambda t: oracles.levels(name, "cos", t)[0],
        lambda t: oracles.levels(name, "cos", t)[1],
    )


def literal_network(sde: VPSDE, c: Tensor) -> oracles.Estimator:
    def eps(x: Tensor, t: float) -> Tensor:
        return oracles.centre(lambda w: sde.eps.kernel(w, torch.tensor(t), c), x, 2)

    return eps


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("t", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("process", PROCESSES)
def test_gaussian(process: type[VPSDE], detach: bool, t: float, operator: str):
    sde, A, c = prior(process), OPERATORS[operator], torch.randn(1)
    x, y = torch.randn(4, L, D), A(torch.randn(L, D))
    guidance = GaussianScore(y, A, std=0.3, sde=sde, gamma=0.05, detach=detach)
    literal = oracles.gaussian_guidance(
        literal_network(sde, c), y, A, 0.3, 0.05, *levels(process), detach=detach
    )
    result = guidance(x, torch.tensor(t), c)

    torch.testing.assert_close(result, literal(x, t), rtol=1e-9, atol=1e-9)
    assert not result.requires_grad


def test_gaussian_diagonals():
    """std and gamma may be numbers or differ for each element of y."""
    sde, A, c = prior(), OPERATORS["subset"], torch.randn(1)
    x, y = torch.randn(2, L, D), torch.randn(3, 1)
    std, gamma = 0.1 + torch.rand(3, 1), torch.rand(3, 1)
    literal = oracles.gaussian_guidance(literal_network(sde, c), y, A, std, gamma, *levels(VPSDE))
    result = GaussianScore(y, A, std, sde, gamma)(x, torch.tensor(0.4), c)
    torch.testing.assert_close(result, literal(x, 0.4), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", list(OPERATORS))
@pytest.mark.parametrize("t", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_dps(process: type[VPSDE], t: float, operator: str):
    sde, A, c = prior(process), OPERATORS[operator], torch.randn(1)
    x, y = torch.randn(4, L, D), A(torch.randn(L, D))
    literal = oracles.dps_guidance(literal_network(sde, c), y, A, 0.7, *levels(process))
    result = DPSGaussianScore(y, A, sde, zeta=0.7)(x, torch.tensor(t), c)

    torch.testing.assert_close(result, literal(x, t), rtol=1e-9, atol=1e-9)
    assert not result.requires_grad


def test_dps_per_sample():
    """Each sample is then guided as if it were alone; by default samples share one norm."""
    sde, A, c, t = prior(), OPERATORS["subset"], torch.randn(1), torch.tensor(0.4)
    x, y = torch.randn(4, L, D), torch.randn(3, 1)
    shared = DPSGaussianScore(y, A, sde)
    alone = torch.cat([shared(x[i : i + 1], t, c) for i in range(4)])

    result = DPSGaussianScore(y, A, sde, per_sample=True)(x, t, c)
    torch.testing.assert_close(result, alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(shared(x, t, c), alone, rtol=1e-3)


@pytest.mark.parametrize("guide", [GaussianScore, DPSGaussianScore])
def test_inside_no_grad(guide: type[nn.Module]):
    """The sampler runs without gradients; the guidance takes its own, and leaves no trace."""
    sde, A, c, t = prior(), OPERATORS["subset"], torch.randn(1), torch.tensor(0.4)
    y = torch.randn(3, 1)
    guidance = guide(y, A, 0.3, sde) if guide is GaussianScore else guide(y, A, sde)
    x = torch.randn(2, L, D)
    outside = guidance(x, t, c)
    with torch.no_grad():
        inside = guidance(x, t, c)

    assert torch.equal(inside, outside)
    assert x.grad is None
    assert all(p.grad is None for p in sde.parameters())


# Against the posterior, where the prior is Gaussian


@pytest.mark.parametrize("t", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_white_prior(process: type[VPSDE], t: float):
    """For x ~ N(0, s^2 I), V[x | x(t)] = s^2 / (1 + s^2 mu^2 / sigma^2) I: with the gamma that
    says so, states observed one by one are guided exactly, at any noise level."""
    s, std, n = 1.7, 0.4, 6
    sde = process(nn.Identity(), (n,))
    sde.eps = GaussianEstimator(Gaussian(torch.zeros(n), s**2 * torch.eye(n)), sde)
    y = torch.randn(3)

    mu, sigma = (f(t) for f in levels(process))
    gamma = s**2 * mu**2 / (sigma**2 + s**2 * mu**2)
    guidance = GaussianScore(y, lambda x: x[..., ::2], std, sde, gamma)

    gain = s**2 / (s**2 + std**2)
    mean, variance = torch.zeros(n), torch.full((n,), s**2)
    mean[::2], variance[::2] = gain * y, s**2 - gain * s**2
    x = torch.randn(5, n)
    exact = sigma * (x - mu * mean) / (mu**2 * variance + sigma**2)

    torch.testing.assert_close(guidance(x, torch.tensor(t)), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("detach", [False, True])
def test_at_the_end_of_the_diffusion(detach: bool):
    """As sigma goes to 0 the guided score is the posterior's, for any linear operator."""
    n = 6
    root = torch.randn(n, n)
    S, m = root @ root.T + torch.eye(n), torch.randn(n)
    H, std, y = torch.randn(4, n), torch.rand(4) + 0.5, torch.randn(4)
    sde = VPSDE(nn.Identity(), (n,), eta=1e-6)
    sde.eps = GaussianEstimator(Gaussian(m, S), sde)
    guidance = GaussianScore(y, lambda x: x @ H.T, std, sde, detach=detach)

    x, t = torch.randn(5, n), torch.tensor(0.0)
    score = -guidance(x, t) / sde.sigma(t)
    likelihood = (y - x @ H.T) / std**2 @ H
    prior = -torch.linalg.solve(S, (x - m).T).T
    torch.testing.assert_close(score, prior + likelihood, rtol=1e-6, atol=1e-6)


# Buffers and arguments


def test_buffers():
    """Observations move with the module, and are part of a strict state."""
    y = torch.randn(3, 1)
    guidance = GaussianScore(y, OPERATORS["subset"], 0.1, prior(), gamma=1e-2)
    assert {"y", "std", "gamma"} == {name for name, _ in guidance.named_buffers(recurse=False)}
    assert {"y"} == {
        name
        for name, _ in DPSGaussianScore(y, OPERATORS["subset"], prior()).named_buffers(
            recurse=False
        )
    }
    names = set(guidance.state_dict())
    assert {"y", "std", "gamma", "sde.device", "sde.eps.kernel.embedding.freqs"} < names
    assert all(name in ("y", "std", "gamma") or name.startswith("sde.") for name in names)
    assert tuple(guidance.state_dict()["y"].shape) == (3, 1)


def test_observation_of_another_type():
    """y is compared in the type of the state: integers or float64 beside a float32 network."""
    sde = prior().float()
    x, t, c = torch.randn(2, L, D).float(), torch.tensor(0.4).float(), torch.randn(1).float()
    counts = torch.tensor([[1], [0], [2]])
    results = [
        GaussianScore(y, OPERATORS["subset"], 0.3, sde)(x, t, c)
        for y in (counts, counts.float(), counts.double())
    ]
    assert {r.dtype for r in results} == {torch.float32}
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def gaussian(y: Tensor, std: object = 0.1, gamma: object = 1e-2) -> GaussianScore:
    return GaussianScore(y, OPERATORS["subset"], std, prior(), gamma)


@pytest.mark.parametrize(
    ("std", "message"),
    [
        (0.0, r"std must be positive, got 0\.0$"),
        (-0.1, r"std must be positive, got -0\.1"),
        (math.nan, r"std must be positive, got nan$"),
        (torch.tensor([[0.1], [0.0], [0.1]]), r"std must be positive, got 0\.0 at index \(1, 0\)"),
        (torch.tensor([[0.1], [0.2], [math.nan]]), r"std .* got nan at index \(2, 0\)"),
    ],
)
def test_bad_std(std: object, message: str):
    with pytest.raises(ValueError, match=message):
        gaussian(torch.zeros(3, 1), std=std)


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        (-1e-3, r"gamma must be zero or positive, got -0\.001$"),
        (math.nan, r"gamma must be zero or positive, got nan$"),
        (torch.tensor([[0.1], [-1.0], [0.1]]), r"gamma .* got -1\.0 at index \(1, 0\)"),
    ],
)
def test_bad_gamma(gamma: object, message: str):
    with pytest.raises(ValueError, match=message):
        gaussian(torch.zeros(3, 1), gamma=gamma)


def test_gamma_may_be_zero():
    assert (
        gaussian(torch.zeros(3, 1), gamma=0.0)(
            torch.randn(1, L, D), torch.tensor(0.4), torch.zeros(1)
        )
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "guide",
    [
        lambda y: GaussianScore(y, OPERATORS["subset"], 0.1, prior()),
        lambda y: DPSGaussianScore(y, OPERATORS["subset"], prior()),
    ],
    ids=["gaussian", "dps"],
)
def test_missing_observations(guide: Callable[[Tensor], nn.Module], value: float):
    """The error says where, and its advice on how to mask works."""
    y = torch.randn(3, 1)
    y[1, 0] = value
    message = (
        r"y must be finite, got 1 of 3 elements that are not, the first at index \(1, 0\); "
        r".*m = y\.isfinite\(\), then y\[m\] and A=lambda x: A\(x\)\[\.\.\., m\]"
    )
    with pytest.raises(ValueError, match=message):
        guide(y)

    m, A = y.isfinite(), OPERATORS["subset"]
    guidance = GaussianScore(y[m], lambda x: A(x)[..., m], 0.1, prior())
    assert guidance(torch.randn(2, L, D), torch.tensor(0.4), torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 1), (5, 3, 1), (3, 2)])
@pytest.mark.parametrize("guide", ["gaussian", "dps"])
def test_shape_of_the_observation(guide: str, shape: tuple[int, ...]):
    """Neither a y that does not fit nor one that would be broadcast to a larger shape."""
    y, A = torch.zeros(shape), OPERATORS["subset"]
    guidance = (
        GaussianScore(y, A, 0.1, prior())
        if guide == "gaussian"
        else DPSGaussianScore(y, A, prior())
    )
    message = rf"y has shape \({', '.join(map(str, shape))},?\), but A\(x\) has shape \(2, 3, 1\)"
    with pytest.raises(ValueError, match=message):
        guidance(torch.randn(2, L, D), torch.tensor(0.4), torch.zeros(1))


@pytest.mark.parametrize("guide", ["gaussian", "dps"])
def test_device_of_the_observation(guide: str):
    y, A = torch.zeros(3, 1), OPERATORS["subset"]
    guidance = (
        GaussianScore(y, A, 0.1, prior())
        if guide == "gaussian"
        else DPSGaussianScore(y, A, prior())
    )
    guidance.y = y.to("meta")
    with pytest.raises(ValueError, match=r"y is on meta, but A\(x\) is on cpu"):
        guidance(torch.randn(2, L, D), torch.tensor(0.4), torch.zeros(1))
