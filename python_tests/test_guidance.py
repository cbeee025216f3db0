"""Guidance against its formulas, and against the posterior where that is known."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import oracles
import pytest
import torch
from torch import Tensor, nn

from sda_fast import (
    VPSDE,
    DPSGaussianScore,
    GaussianScore,
    LikelihoodScore,
    MCScoreNet,
    MMPSGaussianScore,
    Spectrum,
    SubSubVPSDE,
    SubVPSDE,
    likelihood,
    observation,
)
from sda_fast.evaluation import Gaussian, GaussianEstimator
from sda_fast.guidance.solve import conjugate_gradient, gmres

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


@pytest.mark.parametrize(
    "guide",
    [
        partial(GaussianScore, std=0.1),
        partial(
            GaussianScore,
            std=0.1,
            gamma=Spectrum(torch.eye(L * D).reshape(L, D, -1), torch.ones(L * D)),
        ),
        partial(MMPSGaussianScore, std=0.1),
        partial(MMPSGaussianScore, std=0.1, solver="cg"),
        DPSGaussianScore,
        partial(DPSGaussianScore, per_sample=True),
    ],
)
def test_nothing_observed(guide: Callable[..., nn.Module]):
    """The posterior is the prior, to the bit."""
    sde, A, c, t = prior(), OPERATORS["subset"], torch.randn(1), torch.tensor(0.4)
    x = torch.randn(2, L, D)
    guidance = guide(torch.full((3, 1), torch.nan), A, sde=sde)

    torch.testing.assert_close(guidance(x, t, c), sde.eps(x, t, c), rtol=0, atol=0)


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


def test_arrays_in_another_order():
    """Of their elements and bytes, as NumPy reverses them and files have them."""
    sde, x, t, c = prior(), torch.randn(2, L, D), torch.tensor(0.4), torch.randn(1)
    y, std = torch.randn(3, 1), torch.rand(3, 1) + 0.1
    expected = GaussianScore(y, OPERATORS["subset"], std, sde)(x, t, c)
    for order in (lambda a: a[::-1].copy()[::-1], lambda a: a.astype(">f8")):
        arrays = order(y.numpy()), order(std.numpy())
        result = GaussianScore(arrays[0], OPERATORS["subset"], arrays[1], sde)(x, t, c)
        assert torch.equal(result, expected)


def test_numbers_are_not_rounded():
    """Beside an observation in float64 they are of float64."""
    torch.set_default_dtype(torch.float32)
    y, A = torch.zeros(3, 1, dtype=torch.float64), OPERATORS["subset"]
    guidance = GaussianScore(y, A, 0.1, prior(), gamma=0.3)
    assert (guidance.std.item(), guidance.gamma.item()) == (0.1, 0.3)
    assert MMPSGaussianScore(y, A, 0.1, prior()).std.item() == 0.1
    assert GaussianScore(y.float(), A, 0.1, prior()).std.dtype == torch.float32


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


OWN: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor]], nn.Module]] = {
    "gaussian": lambda y, A: GaussianScore(y, A, 0.1, prior()),
    "dps": lambda y, A: DPSGaussianScore(y, A, prior()),
    "mmps": lambda y, A: MMPSGaussianScore(y, A, 0.1, prior()),
}


@pytest.mark.parametrize("guide", list(OWN))
def test_missing_observations(guide: str):
    """NaN in y is the same as an observation operator that leaves the element out."""
    y, A = torch.randn(3, 1), OPERATORS["subset"]
    y[1, 0] = torch.nan
    m = y.isfinite()
    x, t, c = torch.randn(2, L, D), torch.tensor(0.4), torch.zeros(1)

    torch.manual_seed(1)
    masked = OWN[guide](y, A)(x, t, c)
    torch.manual_seed(1)
    left_out = OWN[guide](y[m], lambda x: A(x)[..., m])(x, t, c)
    torch.testing.assert_close(masked, left_out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guide", list(OWN))
def test_infinite_observations(guide: str):
    y = torch.randn(3, 1)
    y[1, 0] = -math.inf
    message = r"y must be finite, or NaN .* got 1 infinite of 3 elements, the first at .* \(1, 0\)"
    with pytest.raises(ValueError, match=message):
        OWN[guide](y, OPERATORS["subset"])


EVERY: dict[str, Callable[..., nn.Module]] = {
    "gaussian": partial(GaussianScore, std=0.1),
    "factored": partial(GaussianScore, std=None, covariance=0.01 * torch.eye(3).double()),
    "iterated": partial(
        GaussianScore,
        std=0.1,
        gamma=Spectrum(torch.eye(L * D).double().reshape(L, D, -1), torch.ones(L * D).double()),
    ),
    "gmres": partial(MMPSGaussianScore, std=0.1),
    "cg": partial(MMPSGaussianScore, std=0.1, solver="cg"),
    "dps": partial(DPSGaussianScore, per_sample=True),
}


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("guide", list(EVERY))
def test_prediction_that_is_not_finite(guide: str, value: float):
    """It is no observation that is missing: its own sample is told, and no other. Where nothing was
    observed, it does not count."""
    sde, c, t = prior(), torch.zeros(1), torch.tensor(0.4)
    x, y = torch.randn(2, L, D), torch.randn(3, 1)

    def A(x: Tensor) -> Tensor:
        bad = torch.zeros(len(x), 3, 1)
        bad[0, 1] = value
        return OPERATORS["subset"](x) + bad

    score = EVERY[guide]
    result = score(y, A, sde=sde)(x, t, c)
    expected = score(y, OPERATORS["subset"], sde=sde)(x, t, c)
    assert not result[0].isfinite().all()
    torch.testing.assert_close(result[1], expected[1])

    y[1] = math.nan
    expected = score(y, OPERATORS["subset"], sde=sde)(x, t, c)
    torch.testing.assert_close(score(y, A, sde=sde)(x, t, c), expected)


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
@pytest.mark.parametrize("solve", [conjugate_gradient, gmres])
def test_solvers_let_nan_through(solve: Callable[..., Tensor], tolerance: float):
    """Of the right-hand side and of products with M, in their own sample."""
    b = torch.ones(4, 3)
    b[1, 2], b[2, 0] = math.nan, math.inf
    factor = torch.tensor([2.0, 2.0, 2.0, math.nan])[:, None]
    x = solve(lambda u: factor * u, b, 2, tolerance)
    torch.testing.assert_close(x[0], 0.5 * b[0])
    assert all(not x[i].isfinite().any() for i in (1, 2, 3))


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


GUIDES: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor], VPSDE], nn.Module]] = {
    "gaussian": lambda y, A, sde: GaussianScore(y, A, 0.3, sde),
    "mmps": lambda y, A, sde: MMPSGaussianScore(y, A, 0.3, sde),
    "dps": lambda y, A, sde: DPSGaussianScore(y, A, sde, per_sample=True),
    "density": lambda y, A, sde: LikelihoodScore(likelihood.StudentT(y, A, 0.3), sde),
    "sum": lambda y, A, sde: LikelihoodScore(
        likelihood.StudentT(y, A, 0.3) + likelihood.Gaussian(torch.ones(3, 1), A, 0.3), sde
    ),
    "likelihood": lambda y, A, sde: LikelihoodScore(
        lambda x: -((y - A(x)) ** 2).flatten(1).sum(dim=1), sde
    ),
}


@pytest.mark.parametrize("each", ["none", "observation", "operator"])
@pytest.mark.parametrize("guide", list(GUIDES))
def test_samples_in_parts(guide: str, each: str, monkeypatch: pytest.MonkeyPatch):
    """Samples are guided a few at a time where what is observed is not of the whole batch."""
    sde = VPSDE(MCScoreNet(D, order=2, hidden_features=[16]), (L, D))
    t, x = torch.tensor(0.4), torch.randn(5, L, D)
    y = torch.randn(5, 3, 1) if each == "observation" else torch.randn(3, 1)
    scale = torch.rand(5, 1, 1) + 0.5 if each == "operator" else torch.ones(())
    guidance = GUIDES[guide](y, lambda x: scale * OPERATORS["subset"](x), sde)

    expected = guidance(x, t)
    seen: list[int] = []
    cotangent = guidance.cotangent
    monkeypatch.setattr(
        guidance, "cotangent", lambda x, *rest: seen.append(len(x)) or cotangent(x, *rest)
    )
    monkeypatch.setattr(sde.eps, "samples_at_once", lambda x, c: 2)
    torch.testing.assert_close(guidance(x, t), expected, rtol=1e-12, atol=1e-12)
    assert seen == ([2, 2, 1] if each == "none" else [5])


@pytest.mark.parametrize("guide", ["gaussian", "mmps", "dps", "density", "sum"])
def test_observation_of_each_sample(guide: str):
    """Each is guided as if it were alone, with its own."""
    sde = VPSDE(MCScoreNet(D, order=2, hidden_features=[16]), (L, D))
    t, x, y = torch.tensor(0.4), torch.randn(4, L, D), torch.randn(4, 3, 1)
    y[2, 1] = torch.nan
    A = OPERATORS["subset"]
    alone = [GUIDES[guide](y[i], A, sde)(x[i : i + 1], t) for i in range(4)]
    torch.testing.assert_close(GUIDES[guide](y, A, sde)(x, t), torch.cat(alone))


def test_observation_of_each_sample_with_a_covariance():
    """One system is solved for all samples: the argument that asks for it is named."""
    x, t, c, A = torch.randn(4, L, D), torch.tensor(0.4), torch.zeros(1), OPERATORS["subset"]
    says = (
        r"^covariance must have shape \(12, 12\) for the 12 elements of y, one observation for all "
        r"samples, got \(3, 3\)$"
    )
    with pytest.raises(ValueError, match=says):
        GaussianScore(torch.zeros(4, 3, 1), A, None, prior(), covariance=torch.eye(3))
    white = Spectrum(torch.eye(L * D).reshape(L, D, -1), torch.ones(L * D))
    for given, guidance in (
        ("gamma, a Spectrum,", GaussianScore(torch.zeros(4, 3, 1), A, 0.1, prior(), white)),
        (
            "covariance",
            GaussianScore(torch.zeros(4, 3, 1), A, None, prior(), covariance=torch.eye(12)),
        ),
    ):
        says = (
            rf"^with {given} y must be one observation for all samples, of shape \(3, 1\), got "
            r"shape \(4, 3, 1\)$"
        )
        with pytest.raises(ValueError, match=says):
            guidance(x, t, c)


def in_place(x: Tensor) -> Tensor:
    x[..., 0] *= 2
    return OPERATORS["subset"](x)


def test_operator_that_changes_its_input():
    """As existing code may, since there it is given a tensor that is not looked at again."""
    sde = VPSDE(MCScoreNet(D, order=2, hidden_features=[16]), (L, D))
    x, t, y = torch.randn(2, L, D), torch.tensor(0.4), torch.randn(3, 1)
    plain, before = OPERATORS["subset"], x.clone()
    doubled = observation.Function(in_place, (L, D), (3, 1))
    for guide in GUIDES.values():
        expected = guide(y, lambda x: 2 * plain(x), sde)(x, t)
        for A in (in_place, doubled):
            torch.testing.assert_close(guide(y, A, sde)(x, t), expected)
            assert torch.equal(x, before)

    gamma = Spectrum(torch.eye(L * D).reshape(L, D, -1), torch.ones(L * D))
    score = partial(GaussianScore, std=0.3, sde=sde, gamma=gamma)
    torch.testing.assert_close(score(y, in_place)(x, t), score(y, lambda x: 2 * plain(x))(x, t))

    pointwise = observation.Pointwise(lambda x: x.mul_(2), (L, D), lambda x: torch.full_like(x, 2))
    torch.testing.assert_close(pointwise(x), 2 * before)
    assert torch.equal(x, before)


def test_operator_of_no_tensor():
    sde = VPSDE(MCScoreNet(D, order=2, hidden_features=[16]), (L, D))
    guidance = GaussianScore(torch.zeros(1), lambda x: (x,), 0.1, sde)
    with pytest.raises(TypeError, match="A must return a tensor, got tuple"):
        guidance(torch.randn(2, L, D), torch.tensor(0.4))


# With the prior's covariance


class Shrink(nn.Module):
    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return 0.9 * x


class Linear:
    """A linear observation operator with its own products, as those of sda_fast.observation."""

    linear = True

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        return (cotangent @ self.matrix).reshape(x.shape)


def gaussian_problem(
    n: int = 12, m: int = 5
) -> tuple[VPSDE, Gaussian, Tensor, Tensor, Tensor, Tensor]:
    """Returns a Gaussian prior's process, the prior, and H, the noise's covariance, y and x."""
    root = torch.randn(n, n)
    prior = Gaussian(torch.randn(n), root @ root.T / n + 0.1 * torch.eye(n))
    sde = VPSDE(nn.Identity(), (n,))
    sde.eps = GaussianEstimator(prior, sde)
    noise = torch.randn(m, m)
    noise = noise @ noise.T / m + 0.1 * torch.eye(m)
    return sde, prior, torch.randn(m, n), noise, torch.randn(m), torch.randn(4, n)


def exact_posterior(
    prior: Gaussian, H: Tensor, noise: Tensor, y: Tensor, sde: VPSDE, x: Tensor, t: float
) -> Tensor:
    """Returns the noise estimate of the posterior of a linear-Gaussian problem."""
    S, m = prior.covariance, prior.mean
    gain = S @ H.T @ torch.linalg.inv(H @ S @ H.T + noise)
    posterior = Gaussian(m + gain @ (y - H @ m), S - gain @ H @ S)
    return GaussianEstimator(posterior, sde)(x, torch.tensor(t))


def white(values: Sequence[float] = (1, 1, 1), **options: float) -> Spectrum:
    return Spectrum(torch.eye(3), torch.tensor(values, dtype=torch.get_default_dtype()), **options)


def spectrum(covariance: Tensor) -> Spectrum:
    values, vectors = torch.linalg.eigh(covariance)
    return Spectrum(vectors, values)


@pytest.mark.parametrize("dense", [True, False], ids=["factored", "iterated"])
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("t", [0.0, 0.05, 0.3, 0.7, 1.0])
def test_exact_with_the_spectrum_of_the_prior(t: float, diagonal: bool, dense: bool):
    """With the true Gamma the guidance of a linear-Gaussian problem is the posterior's, at any
    noise level, factored or by conjugate gradients, with a full covariance of the noise or not."""
    sde, prior, H, noise, y, x = gaussian_problem()
    if diagonal:
        noise = torch.diag(noise.diagonal())
    A = Linear(H) if dense else Linear(H).__call__
    std, covariance = (noise.diagonal().sqrt(), None) if diagonal else (None, noise)
    gamma = spectrum(prior.covariance)
    guidance = GaussianScore(y, A, std, sde, gamma, covariance=covariance, tolerance=1e-12)
    expected = exact_posterior(prior, H, noise, y, sde, x, t)
    torch.testing.assert_close(guidance(x, torch.tensor(t)), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", ["cg", "gmres"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_exact_by_the_networks_own_jacobian(t: float, solver: str):
    """A Gaussian prior's denoiser knows V[x | x(t)]: as many iterations as observations suffice."""
    sde, prior, H, noise, y, x = gaussian_problem()
    std = noise.diagonal().sqrt()
    guidance = MMPSGaussianScore(y, Linear(H), std, sde, iterations=2 * len(y), solver=solver)
    expected = exact_posterior(prior, H, torch.diag(std**2), y, sde, x, t)
    torch.testing.assert_close(guidance(x, torch.tensor(t)), expected, rtol=1e-6, atol=1e-6)


SYSTEMS: dict[str, Callable[..., nn.Module]] = {
    "gmres": lambda y, A, s, sde: MMPSGaussianScore(y, A, s, sde),
    "cg": lambda y, A, s, sde: MMPSGaussianScore(y, A, s, sde, solver="cg"),
    "iterated": lambda y, A, s, sde: GaussianScore(y, A.__call__, s, sde, white()),
    "factored": lambda y, A, s, sde: GaussianScore(y, A, s, sde, white()),
    "covariance": lambda y, A, s, sde: GaussianScore(
        y, A, None, sde, white(), covariance=torch.eye(3, dtype=torch.float64) * s.double() ** 2
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-24, 1e-20, 1e-12, 1e-8, 1e8, 1e12, 1e20, 1e24])
@pytest.mark.parametrize("guide", list(SYSTEMS))
def test_units_of_the_observation(guide: str, scale: float):
    """Guidance does not depend on them, in float32, whose squares of 1e20 are infinite."""
    torch.set_default_dtype(torch.float32)
    sde, t = VPSDE(Shrink(), (3,)), torch.tensor(0.3)
    x, y, std = torch.randn(4, 3), torch.randn(3), torch.tensor([0.1, 0.2, 0.3])
    H = torch.randn(3, 3)
    expected = SYSTEMS[guide](y, Linear(H), std, sde)(x, t)
    result = SYSTEMS[guide](scale * y, Linear(scale * H), scale * std, sde)(x, t)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_solver_that_finds_nothing_says_so():
    """Where the network's Jacobian makes the covariance negative there is no guidance by CG."""

    class Steep(nn.Module):
        def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            return 100 * x

    guidance = MMPSGaussianScore(
        torch.ones(3), lambda x: x, 1e-3, VPSDE(Steep(), (3,)), solver="cg"
    )
    with pytest.warns(RuntimeWarning, match="cg found no guidance for 2 of 2 samples"):
        guidance(torch.randn(2, 3), torch.tensor(0.5))


def test_more_iterations_are_nearer():
    sde, prior, H, noise, y, x = gaussian_problem()
    std = noise.diagonal().sqrt()
    expected = exact_posterior(prior, H, torch.diag(std**2), y, sde, x, 0.3)
    errors = [
        (MMPSGaussianScore(y, Linear(H), std, sde, iterations=n)(x, torch.tensor(0.3)) - expected)
        .norm()
        .item()
        for n in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True)


def test_nonlinear_operator_is_linearised():
    """Gamma is carried by the operator's Jacobian at the denoised trajectory, whoever gives it."""
    sde, prior, H, _, y, x = gaussian_problem()
    gamma = spectrum(prior.covariance)

    def A(x: Tensor) -> Tensor:
        return torch.sinh(x @ H.T / 4)

    t, ratio = torch.tensor(0.3), float(sde.sigma(torch.tensor(0.3)) / sde.mu(torch.tensor(0.3)))
    result = GaussianScore(y, A, 0.5, sde, gamma, tolerance=1e-12)(x, t)

    mu, sigma = sde.mu(t), sde.sigma(t)
    leaf = x.clone().requires_grad_()
    denoised = (leaf - sigma * sde.eps(leaf, t)) / mu
    prediction = A(denoised)
    solved = []
    for i in range(len(x)):
        J = torch.autograd.functional.jacobian(A, denoised[i : i + 1].detach())[0, :, 0]
        M = 0.25 * torch.eye(len(y)) + ratio**2 * J @ gamma.multiply(J, ratio).T
        solved.append(torch.linalg.solve(M, (y - prediction[i]).detach()))
    (gradient,) = torch.autograd.grad(prediction, leaf, torch.stack(solved))
    expected = sde.eps(x, t) - sigma * gradient
    torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dense", [True, False], ids=["factored", "iterated"])
def test_missing_observations_with_a_covariance(dense: bool):
    """The rows and columns of what was not observed do not count."""
    sde, prior, H, noise, y, x = gaussian_problem()
    y[1] = torch.nan
    m = y.isfinite()
    gamma = spectrum(prior.covariance)

    def guided(y: Tensor, H: Tensor, noise: Tensor) -> Tensor:
        A = Linear(H) if dense else Linear(H).__call__
        guidance = GaussianScore(y, A, None, sde, gamma, covariance=noise, tolerance=1e-12)
        return guidance(x, torch.tensor(0.3))

    left_out = guided(y[m], H[m], noise[m][:, m])
    torch.testing.assert_close(guided(y, H, noise), left_out, rtol=1e-8, atol=1e-8)


def test_covariance_beside_a_number():
    """A full covariance of the noise with a gamma as the paper's."""
    sde, _, H, noise, y, x = gaussian_problem()
    full = GaussianScore(y, Linear(H), None, sde, 0.3, covariance=torch.diag(noise.diagonal()))
    plain = GaussianScore(y, Linear(H), noise.diagonal().sqrt(), sde, 0.3)
    t = torch.tensor(0.3)
    torch.testing.assert_close(full(x, t), plain(x, t), rtol=1e-10, atol=1e-10)


def test_covariance_of_a_broadcast_observation():
    """One of y alone would make the noise of all that it is compared with the same number."""
    sde, A, x = prior(), OPERATORS["subset"], torch.randn(2, L, D)
    for y in (torch.ones(1), torch.ones(1, 1)):
        guidance = GaussianScore(y, A, None, sde, covariance=torch.eye(1))
        says = (
            r"covariance of shape \(1, 1\) A\(x\) must have 1 elements .* got 3 of shape \(3, 1\)"
        )
        with pytest.raises(ValueError, match=says):
            guidance(x, torch.tensor(0.4), torch.zeros(1))


def test_observation_that_changes_is_seen():
    sde, prior, H, noise, y, x = gaussian_problem()
    t, gamma = torch.tensor(0.3), spectrum(prior.covariance)
    guidance = GaussianScore(y, Linear(H), None, sde, gamma, covariance=noise)
    guidance(x, t)
    guidance.covariance = 4 * noise
    anew = GaussianScore(y, Linear(H), None, sde, gamma, covariance=4 * noise)
    torch.testing.assert_close(guidance(x, t), anew(x, t))
    y[0] = torch.nan  # in place
    anew = GaussianScore(y, Linear(H), None, sde, gamma, covariance=4 * noise)
    torch.testing.assert_close(guidance(x, t), anew(x, t))


def test_system_that_changes_is_seen():
    """The matrix of the operator, and the prior's covariance."""
    sde, prior, H, noise, y, x = gaussian_problem()
    t, gamma = torch.tensor(0.3), spectrum(prior.covariance)
    A = observation.Linear(x.shape[1:], H)
    guidance = GaussianScore(y, A, None, sde, gamma, covariance=noise)
    for change in (A.weight, gamma.vectors):
        before = guidance(x, t)
        if change is A.weight:
            change.data *= 1.5  # not in torch's count
        else:
            change.neg_()[:, :2] = change[:, [1, 0]].clone()
        anew = GaussianScore(y, A, None, sde, gamma, covariance=noise)
        assert not torch.allclose(guidance(x, t), before)
        torch.testing.assert_close(guidance(x, t), anew(x, t))


class Scaled(nn.Module):
    """A linear operator with a number and a matrix that are no buffers."""

    linear = True

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix, self.scale = matrix, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1) @ self.matrix.T

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        return self.scale * (cotangent @ self.matrix).reshape(x.shape)


@pytest.mark.parametrize("change", ["tensor", "number", "part", "closure", "function"])
def test_operator_that_changes_is_seen(change: str):
    """Whatever it keeps its numbers in."""
    sde, prior, H, noise, y, x = gaussian_problem()
    t, gamma = torch.tensor(0.3), spectrum(prior.covariance)
    make: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "tensor": lambda: Linear(H),
        "number": lambda: Scaled(H),
        "part": lambda: observation.Stack(observation.Subsample((12,), slice(0, 5))),
    }
    A = make.get(
        change, lambda: observation.Function(lambda x: x @ H.T, (12,), (5,), linear=True)
    )()
    guidance = GaussianScore(y, A, None, sde, gamma, covariance=noise)
    before = guidance(x, t)

    if change == "number":
        A.scale = 2.0  # type: ignore[attr-defined]
    elif change == "part":
        A.operators[0] = observation.Subsample((12,), slice(5, 10))  # type: ignore[attr-defined]
    elif change == "function":
        A.A = lambda x: 2 * x @ H.T  # type: ignore[attr-defined]
    else:
        H *= 2
    anew = GaussianScore(y, A, None, sde, gamma, covariance=noise)
    assert not torch.allclose(guidance(x, t), before)
    assert torch.equal(guidance(x, t), anew(x, t))


def test_tolerance_that_changes_is_seen():
    sde, prior, H, noise, y, x = gaussian_problem()
    t, gamma = torch.tensor(0.3), spectrum(prior.covariance)
    A = Linear(H).__call__  # which is not known to be linear, and not factored

    def score(tolerance: float) -> GaussianScore:
        return GaussianScore(y, A, None, sde, gamma, covariance=noise, tolerance=tolerance)

    guidance = score(0.3)
    guidance(x, t)
    guidance.tolerance = 1e-9
    assert torch.equal(guidance(x, t), score(1e-9)(x, t))


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_system_is_as_exact_as_the_state(first: torch.dtype):
    """What is kept of a call in a narrow type does not serve a wide one."""
    _, prior, H, noise, y, x = gaussian_problem()
    sde, t, gamma = VPSDE(Shrink(), (12,)), torch.tensor(0.3), spectrum(prior.covariance)
    A = observation.Linear((12,), H)
    guidance, anew = (GaussianScore(y, A, None, sde, gamma, covariance=noise) for _ in "ab")
    guidance(x.to(first), t)
    torch.testing.assert_close(guidance(x, t), anew(x, t), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_levels_of_half_types(dtype: torch.dtype):
    """Called by itself near t = 0, where a half type has no digit of sigma."""
    sde, t = VPSDE(Shrink(), (4,)), torch.tensor(0.01, dtype=dtype)
    x = torch.ones(2, 4, dtype=dtype)
    guidance = GaussianScore(torch.full((4,), -4.0), lambda x: x, 0.05, sde)
    expected = guidance(x.double(), t.double())
    torch.testing.assert_close(guidance(x, t).double(), expected, rtol=0.03, atol=0)


def test_system_of_trajectories_of_another_length():
    """What is kept of the first does not serve the second."""
    sde, t, x = VPSDE(Shrink(), (3,)), torch.tensor(0.3), torch.randn(2, 3)
    guidance = GaussianScore(torch.ones(1), lambda x: x, None, sde, covariance=torch.eye(1))
    guidance(x[:, :1], t)
    with pytest.raises(ValueError, match=r"got 3 of shape \(3,\)"):
        guidance(x, t)


def test_iteration_that_does_not_converge_says_so():
    sde, prior, H, _, y, x = gaussian_problem()
    guidance = GaussianScore(
        y, Linear(H).__call__, 1e-6, sde, spectrum(prior.covariance), tolerance=1e-25
    )
    with pytest.warns(RuntimeWarning, match=r"inverted to a relative residual of .* not 1e-25"):
        guidance(x, torch.tensor(0.3))


def test_spectrum_of_data():
    """Estimated from data it is their covariance; of low rank, the rest is white."""
    root = torch.randn(6, 6)
    data = torch.randn(5000, 6) @ root
    full = Spectrum.estimate(data.reshape(-1, 2, 3), floor=0.0)
    assert full.vectors.shape == (2, 3, 6)
    q = full.vectors.flatten(0, 1)
    torch.testing.assert_close((q * full.values) @ q.T, data.T.cov())

    low = Spectrum.estimate(data, rank=2, floor=0.1)
    values = torch.linalg.eigvalsh(data.T.cov()).flip(0)
    torch.testing.assert_close(low.values, values[:2])
    assert low.rest == pytest.approx(float(values[2:].mean()))
    q, v = low.vectors, torch.randn(3, 6)
    total = (q * low.values) @ q.T + low.rest * (torch.eye(6) - q @ q.T)
    expected = v @ total @ torch.linalg.inv(total + 0.49 * torch.eye(6))
    torch.testing.assert_close(low.multiply(v, 0.7), expected + 0.1 * v)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Spectrum(torch.eye(3), torch.ones(2)), r"shapes .* got \(3, 3\) and \(2,\)"),
        (lambda: Spectrum(2 * torch.eye(3), torch.ones(3)), "orthonormal, but .* as large as 3"),
        (
            lambda: Spectrum(torch.eye(3), -torch.ones(3)),
            "values must be zero or positive, .* -1.0",
        ),
        (lambda: white([1.0, math.nan, 1.0]), "values must be .* finite, got nan"),
        (lambda: white([1.0, math.inf, 1.0]), "values must be .* finite, got inf"),
        (lambda: white(rest=math.inf), "rest must be zero or positive, and finite, got inf"),
        (lambda: white(floor=math.nan), "floor must be zero or positive, and finite, got nan"),
        (lambda: Spectrum.estimate(torch.randn(5, 3), rank=4), "rank must be from 1 to 3, got 4"),
        (lambda: Spectrum.estimate(torch.randn(1, 3)), r"n >= 2, got \(1, 3\)"),
        (lambda: covariance_score(torch.eye(2)), r"shape \(3, 3\) for the 3 elements .* \(2, 2\)"),
        (lambda: covariance_score(torch.ones(3, 3).triu()), "covariance must be symmetric"),
        (lambda: covariance_score(-torch.eye(3)), "covariance must be positive definite"),
        (lambda: covariance_score(torch.eye(3), 0.1), "std or covariance must be given"),
        (lambda: covariance_score(None), "std or covariance must be given"),
        (lambda: mmps(solver="lu"), "solver must be one of cg, gmres, got 'lu'"),
        (lambda: mmps(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: mmps(std=0.0), "std must be positive, got 0.0"),
    ],
)
def test_bad_covariance(make: Callable[[], object], says: str):
    with pytest.raises(ValueError, match=says):
        make()


def covariance_score(covariance: Tensor | None, std: float | None = None) -> GaussianScore:
    A = OPERATORS["subset"]
    return GaussianScore(torch.zeros(3, 1), A, std, prior(), covariance=covariance)


def mmps(std: float = 0.1, **options: object) -> MMPSGaussianScore:
    return MMPSGaussianScore(torch.zeros(3, 1), OPERATORS["subset"], std, prior(), **options)


# Any likelihood


def test_likelihood_is_gaussian_guidance():
    """The Gaussian likelihood, by autograd, guides as GaussianScore does."""
    sde, A, c, t = prior(), OPERATORS["nonlinear"], torch.randn(1), torch.tensor(0.4)
    x, y = torch.randn(4, L, D), A(torch.randn(L, D))
    y[0] = torch.nan
    for detach in (False, True):
        expected = GaussianScore(y, A, 0.3, sde, 0.05, detach)(x, t, c)
        result = LikelihoodScore(likelihood.Gaussian(y, A, 0.3), sde, 0.05, detach)(x, t, c)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def soft(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(x)


SEEN = observation.Subsample((L, D), slice(None, None, 3), slice(0, 1))
OBSERVED: dict[str, Callable[[Tensor], Tensor]] = {
    "callable": lambda x: soft(x[:, ::3, :1]),
    "subsample": SEEN,
    "sparse": observation.Linear((L, D), torch.rand(4, L * D).double().to_sparse()),
    "stack": observation.Stack(SEEN, observation.Select((L, D), torch.tensor([3, 5, 5]))),
    "pointwise": observation.Pointwise(soft, (3, 1)) @ SEEN,
    "derivative": observation.Pointwise(soft, (3, 1), torch.sigmoid) @ SEEN,
    "function": observation.Function(lambda x: soft(x).sum(dim=2), (L, D), (L,)),
    "linear function": observation.Function(lambda x: 2 * x, (L, D), (L, D), linear=True),
}
LAWS: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor]], likelihood.Likelihood]] = {
    "gaussian": lambda y, A: likelihood.Gaussian(y, A, 0.3),
    "student-t": lambda y, A: likelihood.StudentT(y, A, 0.3),
    "huber": lambda y, A: likelihood.Huber(y, A, 0.3),
    "poisson": lambda y, A: likelihood.Poisson(y, A),
    "log-normal": lambda y, A: likelihood.LogNormal(y, A, 0.3),
    "censored": lambda y, A: likelihood.Censored(y, A, 0.3, 0.0, 2.0),
}


@pytest.mark.parametrize("gamma", [0.0, 0.05])
@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("A", list(OBSERVED))
def test_gradient_of_a_likelihood(A: str, law: str, gamma: float):
    """It is that of the whole, the operator included, by autograd."""
    x = torch.rand(2, L, D) + 0.1
    y = (OBSERVED[A](x)[0] + 0.2 * torch.rand_like(OBSERVED[A](x)[0])).clamp_max(2.0)
    y.flatten()[1] = torch.nan
    module = LAWS[law](y, OBSERVED[A])
    guidance = LikelihoodScore(module, prior(), gamma)
    with torch.no_grad():
        result = guidance.cotangent(x, 0.8, 0.6, lambda v: v)

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(leaf, gamma * (0.6 / 0.8) ** 2).sum(), leaf)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert not result.requires_grad


@pytest.mark.parametrize("kind", ["callable", "function", "linear function", "pointwise"])
def test_a_likelihood_observes_once(kind: str):
    """Its gradient does not evaluate what is observed anew."""
    calls = []

    def f(x: Tensor) -> Tensor:
        calls.append(len(x))
        return soft(x)

    A = {
        "callable": f,
        "function": observation.Function(f, (L, D), (L, D)),
        "linear function": observation.Function(f, (L, D), (L, D), linear=True),
        "pointwise": observation.Stack(observation.Pointwise(f, (L, D))),
    }[kind]
    y = torch.rand(L * D) if kind == "pointwise" else torch.rand(L, D)
    guidance = LikelihoodScore(likelihood.Gaussian(y, A, 0.1), prior())
    guidance.cotangent(torch.randn(5, L, D), 0.8, 0.6, lambda v: v)
    assert calls == [5]


def test_an_operator_below_a_likelihood_has_its_own_product():
    """Called once, of what torch could not differentiate; anything with hooks is called."""
    calls = []

    class Counted(observation.Subsample):
        def _observe(self, x: Tensor) -> Tensor:
            calls.append("forward")
            return super()._observe(x)

        def _adjoint(self, y: Tensor) -> Tensor:
            calls.append("adjoint")
            return super()._adjoint(y)

    x, y = torch.randn(2, L, D), torch.rand(3, 1)
    A = Counted((L, D), slice(None, None, 3), slice(0, 1))
    module = likelihood.Gaussian(y, A, 0.1)
    guidance = LikelihoodScore(module, prior())
    first = guidance.cotangent(x, 0.8, 0.6, lambda v: v)
    assert calls == ["forward", "adjoint"]

    module.register_forward_hook(lambda module, given, value: 2 * value)
    torch.testing.assert_close(guidance.cotangent(x, 0.8, 0.6, lambda v: v), 2 * first)

    opaque = observation.Pointwise(lambda x: soft(x).detach(), (3, 1), torch.sigmoid) @ SEEN
    results = [
        LikelihoodScore(likelihood.Gaussian(y, f, 0.1), prior()).cotangent(x, 0.8, 0.6, lambda v: v)
        for f in (opaque, OBSERVED["callable"])
    ]
    torch.testing.assert_close(*results)


def test_any_callable_is_a_likelihood():
    sde, A, c, t = prior(), OPERATORS["nonlinear"], torch.randn(1), torch.tensor(0.4)
    x, y = torch.randn(4, L, D), A(torch.randn(L, D))
    expected = GaussianScore(y, A, 0.3, sde, gamma=0.0)(x, t, c)

    def log_prob(x: Tensor) -> Tensor:
        return -((y - A(x)) ** 2).flatten(1).sum(dim=1) / (2 * 0.3**2)

    torch.testing.assert_close(LikelihoodScore(log_prob, sde)(x, t, c), expected)


@pytest.mark.parametrize(
    ("log_prob", "says"),
    [
        (lambda x: x.sum(), r"one number for each of the 2 trajectories, got shape \(\)"),
        (lambda x: torch.zeros(2), "does not depend on x"),
    ],
)
def test_bad_likelihood(log_prob: Callable[[Tensor], Tensor], says: str):
    with pytest.raises(ValueError, match=says):
        LikelihoodScore(log_prob, prior())(torch.randn(2, L, D), torch.tensor(0.4), torch.zeros(1))


def test_bad_likelihood_gamma():
    with pytest.raises(ValueError, match="gamma must be zero or positive, got -1"):
        LikelihoodScore(lambda x, v: x, prior(), gamma=-1)
    with pytest.raises(TypeError, match="gamma must be a number, got Tensor"):
        LikelihoodScore(lambda x, v: x, prior(), gamma=torch.ones(2))  # type: ignore[arg-type]
    assert LikelihoodScore(lambda x, v: x, prior(), gamma=torch.tensor(0.5)).gamma == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("guide", [GaussianScore, DPSGaussianScore])
@pytest.mark.parametrize("shape", [(), (1, 1), (2, 1)])
def test_observation_of_another_shape_than_the_operators(guide: type, shape: tuple[int, ...]):
    """What an operator knows to be several numbers is not one number for all of them."""
    A = observation.Subsample((6, 2), slice(None, None, 2), slice(0, 1))
    sde = VPSDE(Shrink(), (6, 2))
    std = (0.1,) if guide is GaussianScore else ()
    with pytest.raises(
        ValueError, match=r"of an observation, \(3, 1\), .* got|y has shape \(2, 1\)"
    ):
        guide(torch.zeros(shape), A, *std, sde)(torch.randn(2, 6, 2), torch.tensor(0.5))
    guide(torch.zeros(2, 3, 1), A, *std, sde)(torch.randn(2, 6, 2), torch.tensor(0.5))


def test_arguments_in_another_order():
    A = observation.Subsample((6, 2), slice(None, None, 2))
    with pytest.raises(TypeError, match="y must be a tensor or numbers, got Subsample"):
        GaussianScore(A, torch.zeros(3, 2), 0.1, VPSDE(Shrink(), (6, 2)))
