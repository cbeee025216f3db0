"""The sampler: its numbers, its contract, its repeatability and its refusals."""

import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor, nn

import sda_fast
from sda_fast import (
    VPSDE,
    DPSGaussianScore,
    GaussianScore,
    Junction,
    MCScoreNet,
    MCScoreWrapper,
    ScoreNet,
    ScoreUNet,
    explain,
    reference,
    sample,
)
from sda_fast.sampler.plan import _placement
from sda_fast.sampler.watch import Watch

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = list(TOLERANCE)


def assert_same(x: Tensor, y: Tensor, tolerance: float | None = None) -> None:
    """Asserts that states agree, relative to the largest element."""
    assert x.dtype == y.dtype
    assert x.shape == y.shape
    limit = TOLERANCE[x.dtype] if tolerance is None else tolerance
    assert float((x - y).abs().max()) <= limit * float(y.abs().max())


# Networks, and where they are taken


def mlp(features: int = 3, order: int = 2, width: int = 16, **kwargs) -> MCScoreNet:
    kwargs = {"embedding": 8, "hidden_features": [width] * 2, "activation": nn.SiLU} | kwargs
    return MCScoreNet(features, order=order, **kwargs)


def unet(spatial: int, **kwargs) -> MCScoreNet:
    return MCScoreNet(
        2,
        order=1,
        embedding=8,
        spatial=spatial,
        hidden_channels=(4, 6),
        hidden_blocks=(1, 1),
        activation=nn.SiLU,
        padding_mode="circular",
        **kwargs,
    )


NETWORKS: dict[str, tuple[Callable[[], MCScoreNet], tuple[int, ...]]] = {
    "mlp": (mlp, (9, 3)),
    "unet1": (lambda: unet(1), (5, 2, 8)),
    "unet2": (lambda: unet(2), (4, 2, 4, 8)),
}

GUIDES = ["prior", "gaussian", "detached", "dps"]
GAMMA = 1.0  # what suits a prior of unit variance; networks that know nothing need mild guidance


def observe(x: Tensor) -> Tensor:
    """Observes every other state in part, not linearly."""
    part = x[:, ::2, 0]
    return part + torch.arctan(part) / 2


def problem(
    network: str, guide: str, kind: str, alpha: str, dtype: torch.dtype
) -> tuple[VPSDE, oracles.Estimator]:
    """Makes a process, and the same estimate as a literal function of state and time."""
    build, shape = NETWORKS[network]
    process = getattr(sda_fast, kind)
    prior = process(build().to(dtype), shape, alpha=alpha)
    order, kernel = prior.eps.order, prior.eps.kernel

    def eps(x: Tensor, t: float) -> Tensor:
        return oracles.centre(lambda w: kernel(w, torch.tensor(t, dtype=dtype)), x, order)

    def mu(t: float) -> float:
        return oracles.levels(kind, alpha, t)[0]

    def sigma(t: float) -> float:
        return oracles.levels(kind, alpha, t)[1]

    if guide == "prior":
        return prior, eps

    y = observe(torch.randn(1, *shape, dtype=dtype))[0]
    if guide == "dps":
        literal = oracles.dps_guidance(eps, y, observe, 0.5, mu, sigma)
        return process(DPSGaussianScore(y, observe, prior, 0.5), shape, alpha=alpha), literal

    detach = guide == "detached"
    literal = oracles.gaussian_guidance(eps, y, observe, 0.5, GAMMA, mu, sigma, detach)
    guidance = GaussianScore(y, observe, 0.5, prior, GAMMA, detach)

    return process(guidance.to(dtype), shape, alpha=alpha), literal


def literally(
    sde: VPSDE, eps: oracles.Estimator, x1: Tensor, kind: str, alpha: str, **kwargs
) -> Tensor:
    with torch.no_grad():
        return oracles.sample_loop(
            eps,
            lambda t: oracles.levels(kind, alpha, t)[0],
            lambda t: oracles.levels(kind, alpha, t)[1],
            x1,
            **kwargs,
        )


# The same numbers as a plain loop over the formulas


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("alpha", oracles.ALPHAS)
@pytest.mark.parametrize("kind", oracles.KINDS)
@pytest.mark.parametrize("network", ["mlp", "unet2"])
def test_fidelity_of_schedules(network: str, kind: str, alpha: str, guide: str, dtype: torch.dtype):
    sde, eps = problem(network, guide, kind, alpha, dtype)
    x1 = torch.randn(3, *sde.shape, dtype=dtype)
    expected = literally(sde, eps, x1, kind, alpha, steps=13)
    assert expected.isfinite().all()
    # in float32, mu(1) = 1 - 0.999 has five digits, which DPS divides by
    limit = 3e-5 if (alpha, guide, dtype) == ("lin", "dps", torch.float32) else None
    assert_same(sample(sde, (3,), steps=13, x1=x1), expected, limit)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("network", list(NETWORKS))
def test_fidelity_of_networks(network: str, guide: str, dtype: torch.dtype, backend: str):
    sde, eps = problem(network, guide, "VPSDE", "cos", dtype)
    x1 = torch.randn(2, *sde.shape, dtype=dtype)
    expected = literally(sde, eps, x1, "VPSDE", "cos", steps=12)
    assert_same(sample(sde, (2,), steps=12, x1=x1, backend=backend), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", list(NETWORKS))
def test_fidelity_of_corrections(network: str, dtype: torch.dtype, backend: str):
    """With corrections too, given the same noise."""
    sde, eps = problem(network, "gaussian", "VPSDE", "cos", dtype)
    x1 = torch.randn(2, *sde.shape, dtype=dtype)
    options = {"steps": 8, "corrections": 2, "tau": 0.3, "seed": 2**40 + 7}
    expected = literally(sde, eps, x1, "VPSDE", "cos", **options)
    limit = 3e-5 if dtype == torch.float32 else None  # each delta divides by a small mean
    assert_same(sample(sde, (2,), x1=x1, backend=backend, **options), expected, limit)


def test_fidelity_of_the_junction_rule():
    network = mlp(length_aware=True, composition=Junction(5, 2)).double()
    sde = VPSDE(network, (12, 3))

    def eps(x: Tensor, t: float) -> Tensor:
        def score(states: Tensor) -> Tensor:
            n = states.shape[1]
            padded = torch.zeros(len(x), 5, 3, dtype=x.dtype)
            padded[:, :n] = states
            mask = (torch.arange(5) < n).double()
            time = torch.tensor(t, dtype=x.dtype)
            return network.kernel(padded.flatten(1), time, mask).unflatten(1, (5, 3))[:, :n]

        return oracles.junction(score, x, 5, 2)

    x1 = torch.randn(2, 12, 3, dtype=torch.float64)
    options = {"steps": 8, "corrections": 1, "tau": 0.3, "seed": 5}
    assert_same(
        sample(sde, (2,), x1=x1, **options), literally(sde, eps, x1, "VPSDE", "cos", **options)
    )


def test_float32_is_near_float64():
    """The step's coefficients are computed in float64, so that float32 loses little."""
    sde, _ = problem("mlp", "gaussian", "VPSDE", "cos", torch.float64)
    x1 = torch.randn(3, *sde.shape, dtype=torch.float64)
    exact = sample(sde, (3,), steps=64, x1=x1)
    rounded = sample(sde.float(), (3,), steps=64, x1=x1.float())
    assert_same(rounded.double(), exact, 2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_noise(dtype: torch.dtype):
    """Without x1 the initial noise is that of step 0 of the seed."""
    sde, _ = problem("mlp", "prior", "VPSDE", "cos", dtype)
    x1 = torch.empty(4, *sde.shape, dtype=dtype)
    reference.philox_normal_(x1, seed=9, step=0)
    assert_same(sample(sde, (4,), steps=3, seed=9), sample(sde, (4,), steps=3, x1=x1))


def test_context():
    """The context reaches the network, guided or not."""
    network = mlp(context=2)
    sde = VPSDE(network, (9, 3))
    c, x1 = torch.randn(2), torch.randn(3, 9, 3)

    def eps(x: Tensor, t: float) -> Tensor:
        return oracles.centre(lambda w: network.kernel(w, torch.tensor(t), c), x, 2)

    expected = literally(sde, eps, x1, "VPSDE", "cos", steps=8)
    assert_same(sample(sde, (3,), c, steps=8, x1=x1), expected)

    guided = VPSDE(GaussianScore(torch.zeros(5), observe, 0.5, sde), (9, 3))
    assert not torch.allclose(
        sample(guided, (3,), c, steps=8, x1=x1), sample(guided, (3,), 2 * c, steps=8, x1=x1)
    )


@pytest.mark.parametrize("seed", [np.int64(7), torch.tensor(7)])
def test_seed_of_other_integers(seed: object):
    sde = VPSDE(mlp(), (9, 3))
    assert torch.equal(sample(sde, steps=2, seed=seed), sample(sde, steps=2, seed=7))


@pytest.mark.parametrize("law", ["prior", "posterior"])
def test_context_of_each_sample(law: str):
    """In a batch that is large enough to be guided in parts with one context for all."""
    network = mlp(context=2, width=256).requires_grad_(False)
    sde = VPSDE(network, (9, 3))
    c, x1 = torch.randn(900, 1, 2), torch.randn(900, 9, 3)
    assert network.samples_at_once(x1, c[0, 0]) < 900 == network.samples_at_once(x1, c)
    if law == "posterior":
        sde = VPSDE(GaussianScore(torch.zeros(5), observe, 0.5, sde), (9, 3))
    drawn = sample(sde, (900,), c, steps=2, x1=x1)
    for i in (0, 899):
        assert_same(sample(sde, (), c[i, 0], steps=2, x1=x1[i]), drawn[i])


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3)])
def test_batch_shapes(shape: tuple[int, ...]):
    """Any batch shape, as the flat batch of as many samples."""
    sde = VPSDE(mlp(), (9, 3))
    x1 = torch.randn(*shape, 9, 3)
    x = sample(sde, shape, steps=4, x1=x1)
    assert x.shape == (*shape, 9, 3)
    flat = sample(sde, (math.prod(shape),), steps=4, x1=x1.reshape(-1, 9, 3))
    assert torch.equal(x.reshape(flat.shape), flat)


def test_numbers_as_events():
    """Of shape (): as those of one element."""
    x1, options = torch.randn(5), {"steps": 4, "corrections": 1, "tau": 0.1, "seed": 1}
    for backend in ("native", "reference"):
        drawn = [
            sample(oracles.Process(lambda x, t: 0.5 * x, event), (5,), **options, backend=backend,
                   x1=x1.reshape(5, *event), denoise=True)
            for event in ((), (1,))
        ]  # fmt: skip
        assert torch.equal(drawn[0], drawn[1][:, 0])


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_samples(shape: tuple[int, ...]):
    assert sample(VPSDE(mlp(), (9, 3)), shape, steps=4).shape == (*shape, 9, 3)


def test_arguments_are_left_alone():
    sde = VPSDE(mlp(), (9, 3))
    x1 = torch.randn(2, 9, 3)
    kept = x1.clone()
    x = sample(sde, (2,), steps=4, corrections=1, x1=x1)
    assert torch.equal(x1, kept)
    assert not x.requires_grad
    assert all(p.grad is None for p in sde.parameters())

    turned = torch.randn(2, 3, 9).transpose(1, 2)  # nor need it be contiguous
    assert torch.equal(
        sample(sde, (2,), steps=4, x1=turned), sample(sde, (2,), steps=4, x1=turned.contiguous())
    )


def test_callback():
    """It sees every step's state, and need not copy it to look."""
    sde = VPSDE(mlp(), (9, 3))
    seen: list[tuple[int, float, Tensor]] = []
    x = sample(
        sde,
        (2, 2),
        steps=4,
        corrections=1,
        seed=0,
        callback=lambda n, t, x: seen.append((n, t, x.clone())),
    )
    assert [(n, t) for n, t, _ in seen] == [(1, 0.75), (2, 0.5), (3, 0.25), (4, 0.0)]
    assert all(state.shape == x.shape for _, _, state in seen)
    assert torch.equal(seen[-1][2], x)
    assert not torch.equal(seen[0][2], seen[1][2])


def test_progress_without_a_console(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", None)
    sample(VPSDE(mlp(), (9, 3)), steps=3, progress=True)


def test_progress(capsys: pytest.CaptureFixture[str]):
    sample(VPSDE(mlp(), (9, 3)), steps=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    sample(VPSDE(mlp(), (9, 3)), steps=3)
    assert capsys.readouterr().err == ""


# The contract


def test_signature():
    """Names, order and defaults: others' code relies on them."""

    def signature(f: Callable) -> list[tuple[str, object, bool]]:
        return [
            (p.name, p.default, p.kind is p.KEYWORD_ONLY)
            for p in inspect.signature(f).parameters.values()
        ]

    required = inspect.Parameter.empty
    assert signature(sample) == [
        ("sde", required, False),
        ("shape", (), False),
        ("c", None, False),
        ("steps", 64, False),
        ("corrections", 0, False),
        ("tau", 1.0, False),
        ("x1", None, True),
        ("seed", None, True),
        ("order", 1, True),
        ("window_batch", None, True),
        ("dtype", None, True),
        ("backend", "auto", True),
        ("progress", False, True),
        ("callback", None, True),
        ("denoise", False, True),
        ("clip", None, True),
        ("checkpoint", None, True),
        ("checkpoint_every", 16, True),
    ]
    assert signature(VPSDE.sample)[1:6] == signature(sample)[1:6]
    assert signature(explain)[:2] == signature(sample)[:2]
    assert signature(VPSDE.loss)[1:] == [
        ("x", required, False),
        ("c", None, False),
        ("w", None, False),
    ]
    assert signature(VPSDE.forward)[1:] == [
        ("x", required, False),
        ("t", required, False),
        ("train", False, False),
    ]
    assert signature(GaussianScore) == [
        ("y", required, False),
        ("A", required, False),
        ("std", required, False),
        ("sde", required, False),
        ("gamma", 1e-2, False),
        ("detach", False, False),
        ("covariance", None, True),
        ("tolerance", 1e-5, True),
    ]
    assert signature(DPSGaussianScore)[:4] == [
        ("y", required, False),
        ("A", required, False),
        ("sde", required, False),
        ("zeta", 1.0, False),
    ]
    assert signature(MCScoreNet)[:3] == [
        ("features", required, False),
        ("context", 0, False),
        ("order", 1, False),
    ]
    assert signature(MCScoreWrapper) == [("score", required, False)]
    assert signature(ScoreNet)[:3] == [
        ("features", required, False),
        ("context", 0, False),
        ("embedding", 16, False),
    ]
    assert signature(ScoreUNet)[:3] == [
        ("channels", required, False),
        ("context", 0, False),
        ("embedding", 64, False),
    ]
    for process in (VPSDE, sda_fast.SubVPSDE, sda_fast.SubSubVPSDE):
        assert signature(process) == [
            ("eps", required, False),
            ("shape", required, False),
            ("alpha", "cos", False),
            ("eta", 1e-3, False),
        ]


def test_names():
    """What can be imported from the package itself."""
    names = "VPSDE SubVPSDE SubSubVPSDE GaussianScore DPSGaussianScore MCScoreNet MCScoreWrapper "
    names += "ScoreNet ScoreUNet TimeEmbedding ResMLP UNet MarkovChain DampedSpring Lorenz63 "
    names += "NoisyLorenz63 Lorenz96 LotkaVolterra load_prior sample explain"
    assert set(names.split()) <= set(sda_fast.__all__)
    assert all(hasattr(sda_fast, name) for name in sda_fast.__all__)


@pytest.mark.parametrize("kind", oracles.KINDS)
@pytest.mark.parametrize("alpha", oracles.ALPHAS)
def test_process_sample_is_sample(alpha: str, kind: str):
    sde, _ = problem("mlp", "prior", kind, alpha, torch.float32)
    x = sde.sample((2,), None, 4, 1, 0.5, seed=3)
    assert torch.equal(x, sample(sde, (2,), None, 4, 1, 0.5, seed=3))


STAND_INS: dict[str, Callable[[oracles.Process, Tensor], object]] = {
    "network": lambda prior, y: prior.eps,
    "module": lambda prior, y: oracles.Assimilation(y, observe, 0.5, prior),
    "no context": lambda prior, y: oracles.Diffusion(y, observe, prior, 0.5),
    "function": lambda prior, y: lambda x, t, c: prior.eps(x, t, c),
    "function of two": lambda prior, y: lambda x, t: prior.eps(x, t),
    "ours": lambda prior, y: GaussianScore(y, observe, 0.5, prior),
}


@pytest.mark.parametrize("kind", oracles.KINDS)
@pytest.mark.parametrize("name", list(STAND_INS))
def test_stand_ins(name: str, kind: str):
    """Other people's objects: what they have is enough, and gives the numbers of ours."""
    network = mlp()
    prior = oracles.Process(oracles.WindowedNetwork(network.kernel, 2), (9, 3), kind)
    y, x1 = torch.randn(5), torch.randn(3, 9, 3)
    theirs = oracles.Process(STAND_INS[name](prior, y), (9, 3), kind)

    process = getattr(sda_fast, kind)
    ours = process(network, (9, 3))
    if name in ("module", "ours"):
        ours = process(GaussianScore(y, observe, 0.5, ours), (9, 3))
    elif name == "no context":
        ours = process(DPSGaussianScore(y, observe, ours, 0.5), (9, 3))

    expected = sample(ours, (3,), steps=8, x1=x1)
    assert_same(sample(theirs, (3,), steps=8, x1=x1), expected)

    drawn = sample(theirs, (3,), steps=8, corrections=1, tau=0.3, seed=1)
    assert_same(drawn, sample(ours, (3,), steps=8, corrections=1, tau=0.3, seed=1), 3e-5)


def test_their_guidance_of_our_prior():
    """And the other way round: an object of theirs that holds ours."""
    ours = VPSDE(mlp(), (9, 3))
    y, x1 = torch.randn(5), torch.randn(3, 9, 3)
    theirs = VPSDE(oracles.Assimilation(y, observe, 0.5, ours), (9, 3))
    expected = sample(VPSDE(GaussianScore(y, observe, 0.5, ours), (9, 3)), (3,), steps=8, x1=x1)
    assert_same(sample(theirs, (3,), steps=8, x1=x1), expected)


@pytest.mark.parametrize(
    "device", [torch.empty(()), torch.device("cpu"), "cpu"], ids=["tensor", "device", "name"]
)
def test_device_of_a_stand_in(device: object):
    sde = oracles.Process(lambda x, t: x, (4,), device=device)
    assert sample(sde, (2,), steps=2, seed=0).device.type == "cpu"


def test_device_without_a_number(monkeypatch: pytest.MonkeyPatch):
    """Tensors on "cuda" are on the current of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for device, expected in {"cuda": "cuda:1", "cuda:0": "cuda:0", "cpu": "cpu"}.items():
        sde = oracles.Process(lambda x, t: x, (4,), device=device)
        assert _placement(sde, None, None)[0] == torch.device(expected)


def test_process_without_a_device():
    sde = oracles.Process(lambda x, t: x, (4,))
    del sde.device
    assert sample(sde, (2,), steps=2, seed=0).shape == (2, 4)
    x1 = torch.randn(2, 4, dtype=torch.float64)
    assert sample(sde, (2,), steps=2, x1=x1).dtype == torch.float64


def test_dtype():
    """By default the network's, else that of x1, else torch's default; or as asked."""
    assert sample(VPSDE(mlp().double(), (9, 3)), steps=2).dtype == torch.float64
    sde = oracles.Process(lambda x, t: x, (4,))
    assert sample(sde, steps=2).dtype == torch.float32
    assert sample(sde, steps=2, dtype=torch.float64).dtype == torch.float64
    assert sample(sde, steps=2, x1=torch.zeros(4, dtype=torch.float64)).dtype == torch.float64


def test_parameterless_network_of_context():
    """`c` is passed on only where it is given or can be taken."""
    seen = []
    sde = oracles.Process(lambda x, t, *c: seen.append(c) or x, (4,))
    sample(sde, steps=1)
    sample(sde, c=torch.ones(1), steps=1)
    assert [len(c) for c in seen] == [1, 1]
    with pytest.raises(TypeError):
        sample(oracles.Process(lambda x, t: x, (4,)), c=torch.ones(1), steps=1)


@pytest.mark.parametrize("detach", [False, True])
def test_guided_network_of_two_arguments(detach: bool):
    """As unguided, `c` is passed on only where it can be taken."""
    x, t, y = torch.randn(3, 4), torch.tensor(0.5), torch.randn(4)
    results = []
    for eps in (lambda x, t: 0.5 * x, lambda x, t, c: 0.5 * x):
        prior = oracles.Process(eps, (4,))
        guide = GaussianScore(y, lambda x: x**2, 0.5, prior, detach=detach)
        drawn = sample(oracles.Process(guide, (4,)), (3,), steps=2, seed=1)
        results.append((guide(x, t), drawn))
    assert all(map(torch.equal, *results))


# The same seed, the same samples


def guided(width: int, **kwargs) -> VPSDE:
    network = mlp(width=width, **kwargs)
    return VPSDE(GaussianScore(torch.randn(33), observe, 0.5, VPSDE(network, (65, 3))), (65, 3))


def unguided(width: int, **kwargs) -> VPSDE:
    return VPSDE(mlp(width=width, **kwargs), (65, 3))


VARIANTS = {
    "centre": {},
    "junction": {"length_aware": True, "composition": "junction"},
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("rule", list(VARIANTS))
@pytest.mark.parametrize("make", [guided, unguided])
@pytest.mark.parametrize("width", [64, 256])
def test_bits(width: int, make: Callable, rule: str, batch: int, threads: Callable[[int], None]):
    """Bit for bit, whatever the number of threads and of windows evaluated at once."""
    sde = make(width, **VARIANTS[rule])
    options = {"steps": 2, "corrections": 1, "tau": 0.3, "seed": 1}
    expected = sample(sde, (batch,), **options)
    for size, count in product((None, 1, 7, 64, 1000), (1, 2)):
        threads(count)
        x = sample(sde, (batch,), window_batch=size, **options)
        assert torch.equal(x, expected), (size, count)


@pytest.mark.parametrize("make", [guided, unguided])
def test_rounding_of_a_called_network(make: Callable, threads: Callable[[int], None]):
    """Where PyTorch evaluates the network its rounding depends on the grouping, and no more."""
    sde = make(64, **VARIANTS["junction"])
    options = {"steps": 1, "corrections": 1, "tau": 0.3, "seed": 1, "backend": "reference"}
    expected = sample(sde, (4,), **options)
    for size, count in ((1, 1), (7, 1), (1000, 1), (64, 2)):
        threads(count)
        assert_same(sample(sde, (4,), window_batch=size, **options), expected)


@pytest.mark.parametrize("spatial", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_junction_of_fields(spatial: int, backend: str):
    """A length-aware U-Net: guided by the junction rule, the same to rounding in chunks of any
    size and in other batches, and another with another seed."""
    event = (8, 2, *(4, 8)[2 - spatial :])
    network = unet(spatial, length_aware=True, composition=Junction(3, 2))
    guide = GaussianScore(
        torch.randn(4, 8),
        lambda x: x[:, ::2, 0, ..., :].flatten(2)[..., :8],
        0.5,
        VPSDE(network, event),
        gamma=GAMMA,
    )
    sde = VPSDE(guide, event)
    options = {"steps": 2, "corrections": 1, "tau": 0.3, "backend": backend}
    expected = sample(sde, (3,), seed=1, **options)
    assert expected.shape == (3, *event)
    for size in (1, 4, 1000):
        assert_same(sample(sde, (3,), seed=1, window_batch=size, **options), expected, 3e-5)
    assert_same(sample(sde, (2,), seed=1, **options), expected[:2], 3e-5)
    assert not torch.allclose(sample(sde, (3,), seed=2, **options), expected, atol=0.1)


@pytest.mark.parametrize("make", [guided, unguided])
def test_sample_of_a_larger_batch(make: Callable):
    """A sample is a function of the seed and its number, whatever the others."""
    sde = make(64)
    options = {"steps": 8, "corrections": 1, "tau": 0.3, "seed": 1}
    many = sample(sde, (9,), **options)
    for batch in (1, 4):
        assert_same(many[:batch], sample(sde, (batch,), **options))
    grid = sample(sde, (3, 3), **options)
    assert torch.equal(grid.reshape(many.shape), many)


def test_seed():
    sde = unguided(16)
    options = {"steps": 2, "corrections": 1}
    x = sample(sde, (2,), seed=1, **options)
    for same in (1, np.int64(1), np.uint64(1)):
        assert torch.equal(x, sample(sde, (2,), seed=same, **options))
    others = [sample(sde, (2,), seed=seed, **options) for seed in (0, 2, 2**32 + 1, 2**64 - 1)]
    assert all(not torch.allclose(x, other, atol=0.1) for other in others)
    assert not torch.allclose(x[0], x[1], atol=0.1)


def test_seed_of_the_result():
    """The seed that was drawn draws the same samples."""
    sde = unguided(16)
    x = sample(sde, (2,), steps=2, corrections=1)
    assert torch.equal(sample(sde, (2,), steps=2, corrections=1, seed=x.seed), x)


def test_torch_seed():
    """Without a seed torch's generator decides; with one it is left alone."""
    sde = unguided(16)
    torch.manual_seed(5)
    first, second = sample(sde, steps=2), sample(sde, steps=2)
    torch.manual_seed(5)
    assert torch.equal(sample(sde, steps=2), first)
    assert torch.equal(sample(sde, steps=2), second)
    assert not torch.equal(first, second)

    state = torch.get_rng_state()
    sample(sde, steps=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [guided, unguided])
def test_backends_agree(make: Callable):
    sde = make(64, **VARIANTS["junction"])
    options = {"steps": 8, "corrections": 1, "tau": 0.3, "seed": 1}
    native = sample(sde, (3,), backend="native", **options)
    assert_same(native, sample(sde, (3,), backend="reference", **options), 3e-5)


# What it will do


@pytest.mark.parametrize("make", [guided, unguided])
def test_explain(make: Callable):
    sde = make(16)
    told = explain(sde, (4,), steps=10, corrections=3)
    parts = {name: (served, why) for name, served, why in told.parts}
    assert told.evaluations == 40
    assert {"noise", "predictor", "corrector", "composition", "network"} <= set(parts)
    assert ("guidance" in parts) == (make is guided)
    assert parts["predictor"][0] == "native"
    assert "61 windows" in parts["composition"][1]
    assert str(told).splitlines()[-2] == "40 score evaluations"

    told = explain(sde, (4,), backend="reference")
    assert {served for _, served, _ in told.parts} <= {"reference", "torch"}


def test_native_where_it_cannot_serve():
    sde = oracles.Process(lambda x, t: x, (4,))
    with pytest.raises(RuntimeError, match=r"native.*float8_e5m2"):
        sample(sde, (2,), dtype=torch.float8_e5m2, backend="native", steps=2)
    with pytest.raises(RuntimeError, match=r"native.*float8_e5m2"):
        explain(sde, dtype=torch.float8_e5m2, backend="native")
    told = explain(sde, dtype=torch.float8_e5m2)
    assert told.parts[0][1] == "reference"
    assert "float8_e5m2" in told.parts[0][2]


# Grids and schedules


def test_grid():
    """A grid of times does what the number of steps does that makes the same one."""
    sde, options = unguided(16), {"corrections": 1, "tau": 0.3, "seed": 1}
    expected = sample(sde, (2,), steps=8, **options)
    grid = torch.linspace(1, 0, 9, dtype=torch.float64)
    for steps in (grid, grid.tolist(), tuple(grid.tolist())):
        assert torch.equal(sample(sde, (2,), steps=steps, **options), expected)


@pytest.mark.parametrize("guide", GUIDES)
def test_fidelity_of_grids(guide: str):
    sde, eps = problem("mlp", guide, "VPSDE", "cos", torch.float64)
    times = [0.9, 0.5, 0.49, 0.1, 0.02]
    x1 = torch.randn(2, *sde.shape, dtype=torch.float64)
    x = sample(sde, (2,), steps=times, x1=x1)
    expected = literally(sde, eps, x1, "VPSDE", "cos", steps=times)
    assert_same(x, expected, 1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_run_in_two(order: int):
    """Two grids, one after the other, are one, but for what a multistep predictor remembers."""
    sde = unguided(16)
    whole = sample(sde, (2,), steps=[1.0, 0.6, 0.3, 0.0], seed=1, order=order)
    first = sample(sde, (2,), steps=[1.0, 0.6], seed=1, order=order)
    rest = sample(sde, (2,), steps=[0.6, 0.3, 0.0], x1=first, order=order)
    assert torch.equal(rest, whole) == (order == 1)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("memory", ["its own", "the state's"])
def test_network_that_returns_the_same_memory(memory: str, order: int, backend: str):
    """A multistep predictor still has its estimates when the next one lies in their place."""
    kept = torch.empty(2, 4)
    same = {"its own": lambda x, t: kept.copy_(x), "the state's": lambda x, t: x}[memory]
    drawn = [
        sample(oracles.Process(eps, (4,)), (2,), steps=5, corrections=1, tau=0.1, seed=1,
               order=order, backend=backend)
        for eps in (same, lambda x, t: x.clone())
    ]  # fmt: skip
    assert torch.equal(*drawn)


class SameMemory(nn.Module):
    """A kernel whose results all lie in one place, as those of a captured one do."""

    def __init__(self, kernel: nn.Module):
        super().__init__()
        self.kernel, self.kept = kernel, torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        eps = self.kernel(x, t, c)
        if torch.is_grad_enabled():
            return eps
        if self.kept.shape != eps.shape:
            self.kept = torch.empty_like(eps)
        return self.kept.copy_(eps)


@pytest.mark.parametrize("window_batch", [None, 32])
def test_kernel_that_returns_the_same_memory(window_batch: int | None):
    network, x1 = mlp(), torch.randn(4, 35, 3)
    expected = sample(VPSDE(network, (35, 3)), (4,), steps=3, x1=x1)
    network.kernel = SameMemory(network.kernel)
    sde = VPSDE(network, (35, 3))
    assert_same(sample(sde, (4,), steps=3, x1=x1, window_batch=window_batch), expected)


def test_schedules():
    """Functions of the time, and one number a step, do the same."""
    sde, options = unguided(16), {"steps": 4, "seed": 1}
    counts, taus = [0, 2, 1, 0], [0.1, 0.2, 0.3, 0.4]  # after the steps to 3/4, 1/2, 1/4 and 0
    expected = sample(sde, (2,), corrections=counts, tau=taus, **options)
    functions = {
        "corrections": lambda t: {0.5: 2, 0.25: 1}.get(t, 0),
        "tau": lambda t: 0.5 - 0.4 * t,
    }
    assert_same(sample(sde, (2,), **functions, **options), expected)
    arrays = {"corrections": np.array(counts), "tau": np.array(taus), "steps": np.linspace(1, 0, 5)}
    assert torch.equal(sample(sde, (2,), **{**options, **arrays}), expected)
    for times in (np.linspace(0, 1, 5)[::-1], np.linspace(1, 0, 5).astype(">f8")):
        assert torch.equal(sample(sde, (2,), **{**options, **arrays, "steps": times}), expected)
    assert explain(sde, corrections=counts, steps=4).evaluations == 4 + 3

    seen: list[float] = []
    prior = oracles.Process(lambda x, t: seen.append(float(t)) or x, (4,))
    sample(prior, steps=4, corrections=counts)
    assert seen == [1, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_denoise():
    """The last state's denoised one; nothing else changes."""
    sde = guided(16)
    noisy = sample(sde, (2,), steps=4, seed=1)
    t = torch.tensor(0.0)
    with torch.no_grad():
        expected = (noisy - sde.sigma(t) * sde.eps(noisy, t)) / sde.mu(t)
    assert_same(sample(sde, (2,), steps=4, seed=1, denoise=True), expected)
    assert explain(sde, steps=4, denoise=True).evaluations == 5


def test_early_stop():
    """A callback that returns True has the last word; any other value has none."""
    sde, states = unguided(16), []
    x = sample(sde, (2,), steps=9, seed=1, callback=lambda n, t, x: states.append(x.clone()))
    assert torch.equal(states[-1], x)
    for true in (bool, np.bool_, torch.tensor):
        callback = partial(lambda true, n, t, x: true(n == 4), true)
        stopped = sample(sde, (2,), steps=9, seed=1, callback=callback, denoise=True)
        assert torch.equal(stopped, states[3])
    for other in (1, torch.ones(2), torch.ones(2, dtype=torch.bool), "true"):
        x = sample(sde, (2,), steps=9, seed=1, callback=lambda n, t, x, other=other: other)
        assert torch.equal(x, states[-1])


# Refusals


def small() -> VPSDE:
    return VPSDE(mlp(), (9, 3))


GRID = "steps must be a number of steps or a grid of at least two times that descend within [0, 1]"
NUMBERS: list[tuple[dict[str, object], str]] = [
    ({"steps": "ten"}, "steps must be an integer, at least 1, got ten"),
    ({"steps": [0.5]}, f"{GRID}, got [0.5]"),
    ({"steps": [1.0, 0.5, 0.5]}, f"{GRID}, got [1.0, 0.5, 0.5]"),
    ({"steps": [0.0, 1.0]}, f"{GRID}, got [0.0, 1.0]"),
    ({"steps": [1.5, 0.0]}, f"{GRID}, got [1.5, 0.0]"),
    ({"steps": [1.0, math.nan]}, f"{GRID}, got [1.0, nan]"),
    (
        {"steps": 2, "corrections": [1]},
        "corrections must be one number, 2, one for each step, or a function of the time, got 1",
    ),
    (
        {"steps": 2, "corrections": [1, -1]},
        "corrections[1] must be an integer, at least 0, got -1",
    ),
    (
        {"steps": 2, "corrections": lambda t: t},
        "corrections(0.5) must be an integer, at least 0, got 0.5",
    ),
    ({"steps": 2, "tau": [0.5, 0.0]}, "tau[1] must be positive, got 0.0"),
    ({"steps": 2, "tau": lambda t: -t}, "tau(0.5) must be positive, got -0.5"),
    ({"steps": 0}, "steps must be an integer, at least 1, got 0"),
    ({"steps": -3}, "steps must be an integer, at least 1, got -3"),
    ({"steps": 2.5}, "steps must be an integer, at least 1, got 2.5"),
    ({"corrections": -1}, "corrections must be an integer, at least 0, got -1"),
    ({"corrections": 0.5}, "corrections must be an integer, at least 0, got 0.5"),
    ({"tau": 0.0}, "tau must be positive, got 0.0"),
    ({"tau": -1.0}, "tau must be positive, got -1.0"),
    ({"tau": math.nan}, "tau must be positive, got nan"),
    ({"tau": math.inf}, "tau must be positive, got inf"),
    ({"order": 0}, "order must be 1, 2 or 3, got 0"),
    ({"order": 4}, "order must be 1, 2 or 3, got 4"),
    ({"window_batch": 0}, "window_batch must be an integer, at least 1, got 0"),
    ({"window_batch": -1}, "window_batch must be an integer, at least 1, got -1"),
    ({"window_batch": 2.5}, "window_batch must be an integer, at least 1, got 2.5"),
    ({"seed": 1.5}, "seed must be a non-negative integer below 2^64, got 1.5"),
    ({"seed": -1}, "seed must be a non-negative integer below 2^64, got -1"),
    ({"seed": 2**64}, f"seed must be a non-negative integer below 2^64, got {2**64}"),
]


@pytest.mark.parametrize(("arguments", "message"), NUMBERS, ids=str)
def test_bad_number(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sample(small(), (2,), **{"steps": 2} | arguments)


def test_bad_batch_shape():
    with pytest.raises(TypeError, match=re.escape("shape must be the batch shape, such as (16,)")):
        sample(small(), 4)
    with pytest.raises(ValueError, match=r"shape must have sizes of at least 0, got \(2, -1\)"):
        sample(small(), (2, -1))


def test_bad_backend():
    with pytest.raises(ValueError, match=r"backend must be one of .* 'cuda'"):
        sample(small(), backend="cuda")


@pytest.mark.parametrize("length", [1, 4])
def test_trajectory_shorter_than_a_window(length: int):
    with pytest.raises(ValueError, match=rf"at least 2k \+ 1 = 5 states .* got {length}$"):
        sample(VPSDE(mlp(), (length, 3)), steps=2)


@pytest.mark.parametrize("shape", [(9, 3), (3, 9, 3), (2, 3, 9), (2, 27)])
def test_shape_of_x1(shape: tuple[int, ...]):
    message = f"x1 must have shape (2, 9, 3), the batch shape and the event shape, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(small(), (2,), steps=2, x1=torch.zeros(shape))


@pytest.mark.parametrize(
    "eps", [lambda x: x[..., :2], lambda x: x[:1], lambda x: x.flatten(1), lambda x: x.sum()]
)
def test_shape_of_the_estimate(eps: Callable[[Tensor], Tensor]):
    sde = oracles.Process(lambda x, t: eps(x), (9, 3))
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(2, 9, 3\), got"):
        sample(sde, (2,), steps=2)


@pytest.mark.parametrize("shape", [(9, 4), (9,), (9, 1)])
def test_shape_of_the_event(shape: tuple[int, ...]):
    """A process whose event is not a trajectory of the network's states."""
    message = rf"x must have shape \(B, L, 3, \*\), got \(2, {', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=message):
        sample(VPSDE(mlp(), shape), (2,), steps=2)


def test_dtypes():
    with pytest.raises(TypeError, match=r"dtype must be torch\.float32, as the network's"):
        sample(small(), dtype=torch.float64)
    with pytest.raises(TypeError, match=r"dtype must be a floating-point type, got torch\.int64"):
        sample(oracles.Process(lambda x, t: x, (4,)), dtype=torch.int64)
    for dtype in (torch.float64, torch.int64):
        with pytest.raises(TypeError, match=rf"x1 must have dtype torch\.float32, .* got {dtype}"):
            sample(small(), (2,), x1=torch.zeros(2, 9, 3).to(dtype))
    sde = oracles.Process(lambda x, t: x.double(), (4,))
    with pytest.raises(TypeError, match=r"eps must return torch\.float32 on cpu, .* got .*float64"):
        sample(sde, steps=1)


def test_devices():
    """On the "meta" device, which is all that a machine without an accelerator has."""
    with pytest.raises(ValueError, match=r"x1 must be on cpu, .* got meta"):
        sample(small(), (2,), x1=torch.zeros(2, 9, 3, device="meta"))
    sde = small()
    sde.eps.to("meta")
    with pytest.raises(ValueError, match="sde is on cpu, but its network is on meta"):
        sample(sde, (2,), steps=2)
    sde = oracles.Process(lambda x, t: x.to("meta"), (4,))
    with pytest.raises(TypeError, match=r"must return torch\.float32 on cpu, .* on meta"):
        sample(sde, steps=1)


@pytest.mark.parametrize(
    ("guide", "y", "message"),
    [
        (GaussianScore, torch.zeros(4), r"y has shape \(4,\), but A\(x\) has shape \(2, 5\)"),
        (DPSGaussianScore, torch.zeros(4), r"y has shape \(4,\), but A\(x\) has shape \(2, 5\)"),
    ],
)
def test_observation_that_does_not_fit(guide: type, y: Tensor, message: str):
    arguments = (y, observe, 0.1, small()) if guide is GaussianScore else (y, observe, small())
    with pytest.raises(ValueError, match=message):
        sample(VPSDE(guide(*arguments), (9, 3)), (2,), steps=2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "who"), [(1, 0), (3, 2), (8, 1)])
def test_state_that_is_not_finite(step: int, who: int, value: float):
    """The error names the first step, its time and noise level, and the sample."""
    calls, steps = [], []

    def eps(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        e = torch.zeros_like(x)
        if len(calls) >= step:
            e[who, 1] = value
        return e

    def callback(n: int, t: float, x: Tensor) -> None:
        steps.append(n)

    t = 1 - step / 8
    sigma = oracles.levels("VPSDE", "cos", t)[1]
    message = (
        f"not finite since step {step} (t = {t:.4g}, sigma = {sigma:.4g}), first in sample {who}, "
        "by now in 1 of 3 samples"
    )
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        sample(oracles.Process(eps, (4,)), (3,), steps=8, callback=callback)
    assert steps == list(range(1, step))  # nothing is handed out after it


def test_watch_without_waiting():
    """On an accelerator the state is looked at now and then; the error still names the first step
    and the first sample."""
    x = torch.zeros(3, 4)
    watch = Watch(x)
    watch.every = 4
    watch(x, 1, 0.9, 0.5, last=False)
    x[2] = math.nan
    watch(x, 2, 0.8, 0.4, last=False)
    x[0] = math.inf
    watch(x, 3, 0.7, 0.3, last=False)
    message = r"step 2 \(t = 0\.8, sigma = 0\.4\), first in sample 2, by now in 2 of 3 samples"
    with pytest.raises(FloatingPointError, match=message):
        watch(x, 4, 0.6, 0.2, last=False)
    with pytest.raises(FloatingPointError, match=message):
        watch(x, 5, 0.5, 0.1, last=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_watch_of_a_run_that_was_resumed(dtype):
    """The steps before are not counted, and no type is too short for those after."""
    x = torch.zeros(2, 3, dtype=dtype)
    watch = Watch(x)
    for step in range(11, 300):
        watch(x, step, 0.9, 0.5, last=False)
    x[1] = math.inf
    with pytest.raises(FloatingPointError, match=r"step 300 \(t = 0\.8, .* first in sample 1"):
        watch(x, 300, 0.8, 0.5, last=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_watch_of_a_sum_beyond_its_type(dtype):
    """A state is finite if its elements are, whatever they add up to in a half type."""
    x = torch.full((2, 1 << 18), 0.5, dtype=dtype)
    watch = Watch(x)
    watch(x, 1, 0.9, 0.5, last=True)
    x[1, 7] = -math.inf
    with pytest.raises(FloatingPointError, match=r"since step 2 .* first in sample 1"):
        watch(x, 2, 0.8, 0.5, last=True)


def test_correction_that_is_not_finite():
    """A correction is looked at as well as the predictor's step."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t < 0.3, torch.nan, x)

    with pytest.raises(FloatingPointError, match=r"since step 3 \(t = 0\.25"):
        sample(oracles.Process(eps, (4,)), (2,), steps=4, corrections=1, tau=0.1)


def test_clip_where_it_binds():
    """An estimate is that of the nearest state within the bound, and elsewhere left as it is."""
    times = [0.6, 0.3]
    (mu, sigma), (mu_s, sigma_s) = (oracles.levels("VPSDE", "cos", t) for t in times)
    x1 = torch.tensor([[0.1, -0.2, 3.0, -4.0]], dtype=torch.float64)
    sde = oracles.Process(lambda x, t: 0.1 * x, (4,))

    denoised = ((1 - 0.1 * sigma) / mu * x1).clamp(-1, 1)
    assert (denoised.abs() < 1).tolist() == [[True, True, False, False]]
    expected = mu_s * denoised + sigma_s / sigma * (x1 - mu * denoised)
    assert_same(sample(sde, (1,), steps=times, x1=x1, clip=1.0), expected)
    assert torch.equal(
        sample(sde, (1,), steps=times, x1=x1, clip=1e6), sample(sde, (1,), steps=times, x1=x1)
    )


@pytest.mark.parametrize("guide", [False, True])
def test_clip_bounds_a_prior_that_runs_away(guide):
    """An estimate that denoises to ever larger states is followed no further than the bound."""

    class Away(nn.Module):
        def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            return -3 * x

    sde = VPSDE(Away(), (4, 1))
    if guide:
        sde = VPSDE(GaussianScore(torch.zeros(4, 1), lambda x: x, 0.1, sde), (4, 1))
    options = {"steps": 8, "corrections": 1, "tau": 0.5, "seed": 0, "denoise": True}
    assert float(sample(sde, (3,), **options).abs().max()) > 1e3
    assert float(sample(sde, (3,), clip=2.0, **options).abs().max()) <= 2 + 1e-5


@pytest.mark.parametrize("clip", [0, -1.0, math.inf, math.nan])
def test_clip_out_of_range(clip):
    with pytest.raises(ValueError, match="clip must be positive"):
        sample(oracles.Process(lambda x, t: x, (4,)), steps=2, clip=clip)


def test_samples_that_run_away_are_named():
    """A finite blow-up of one sample among others is reported, not returned in silence."""
    watch = Watch(torch.zeros(5, 2))
    x = torch.ones(5, 2)
    watch.report(90 * x)  # large, but all alike
    x[3, 1] = -99.0
    watch.report(x)
    x[3, 1], x[1, 0] = -101.0, 1e9
    with pytest.warns(RuntimeWarning, match="samples 1, 3 have run away: 2 of 5, up to 1e.09"):
        watch.report(x)


def test_x1_that_is_not_finite():
    x1 = torch.zeros(3, 4)
    x1[1, 2] = math.nan
    with pytest.raises(FloatingPointError, match=r"step 1 .* first in sample 1"):
        sample(oracles.Process(lambda x, t: x, (4,)), (3,), steps=4, x1=x1)


def test_samples_that_are_held_by_the_bound():
    """As where an observation is in other units than the states."""
    assert not warned(torch.full((5,), 0.5))
    outside = warned(torch.tensor([0.1, 14.0, 0.2, -9.0, 0.3]))
    assert "40.0% of all elements lie at the bound clip=3" in outside


def warned(y: Tensor) -> str:
    """Returns what a posterior of standard normal states warns of."""
    process = VPSDE(nn.Identity(), (5,))

    class Normal(nn.Module):
        def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
            return process.sigma(t) * x

    guide = GaussianScore(y, lambda x: x, 0.1, VPSDE(Normal(), (5,)), gamma=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(VPSDE(guide, (5,)), (4,), steps=64, seed=0, clip=3.0, denoise=True)
    return " ".join(str(warning.message) for warning in caught)


def test_a_network_is_no_process():
    message = r"sde must be a noise process, .* got MCScoreNet, which has no eps, shape"
    with pytest.raises(TypeError, match=message):
        sample(MCScoreNet(3, order=1, hidden_features=[8]))
