"""Whole samples: `sda_fast.sample`, the published method in eager PyTorch, and other packages.

All draw with the same network, steps and score evaluations. From the same noise and without
corrections they draw the same samples, as which they are compared before they are timed.
"""

__all__ = [
    "GRID",
    "PEERS",
    "Problem",
    "importable",
    "kolmogorov",
    "lorenz63",
    "moments_work",
    "sampling_work",
]

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sda_fast import VPSDE, GaussianScore, MMPSGaussianScore, ops, sample
from sda_fast.observation import Subsample

from .published import Composed, Guided, posterior
from .turns import Work, precision
from .workloads import (
    COMPONENTS,
    FIELDS,
    LENGTH,
    OBSERVED,
    SMALL,
    STATE,
    count_flops,
    make_network,
    mlp_arguments,
    relative_error,
    unet_arguments,
)

STD, GAMMA, TAU = 0.05, 3e-2, 0.5
PRODUCTS = 3  # with the covariance of what is observed, to solve for the residual

# Codes that need other packages, and the modules of them that are imported.
PEERS = {"azula": "azula.sample", "sda": "sda.score", "native, objects of sda": "sda.score"}

# How many samples are drawn, and with how many corrections a step.
GRID = [(batch, corrections) for batch in (1, 16, 256) for corrections in (0, 1, 16)]

# Draws a batch of samples in so many steps with so many corrections each.
Draw = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Problem:
    """A prior and what is observed of its states.

    Arguments:
        arguments: What its network is made with.
        event: The shape of a sample.
        observed: The slices of it that are observed.
    """

    arguments: dict[str, Any]
    event: tuple[int, ...]
    observed: tuple[slice, ...]

    def observe(self, x: Tensor) -> Tensor:
        return x[(slice(None), *self.observed)]


def lorenz63(width: int = 256) -> Problem:
    """Makes the Lorenz-63 problem: the first component of every eighth state is observed."""
    return Problem(mlp_arguments(width), (LENGTH, STATE), OBSERVED)


def kolmogorov(side: int = 32, channels: tuple[int, ...] = SMALL) -> Problem:
    """Makes the problem of a flow, every other state of which is observed on a coarse grid."""
    two, four = slice(None, None, 2), slice(None, None, 4)
    event = (FIELDS, COMPONENTS, side, side)
    return Problem(unet_arguments(channels), event, (two, slice(None), four, four))


def sampling_work(
    problem: Problem,
    batch: int,
    steps: int,
    corrections: int,
    *,
    guided: bool = True,
    device: str = "cpu",
    compiler: str = "inductor",
    peers: bool = False,
) -> Work:
    """Returns what draws samples.

    Arguments:
        problem: The prior and what is observed.
        batch: The number of samples.
        steps: The number of steps.
        corrections: The number of corrections after each.
        guided: Whether samples of the posterior are drawn, or of the prior.
        device: The device.
        compiler: The backend of torch.compile.
        peers: Whether other packages draw too.
    """
    network = make_network(problem.arguments, device)
    prior = VPSDE(network, shape=problem.event).to(device)
    A = Subsample(problem.event, *problem.observed).to(device)
    y = torch.zeros(A.shape, device=device)
    composed = Composed(network.kernel, network.order)

    def published(network: Any) -> Any:
        noise: dict[str, Any] = {"mu": prior.mu, "sigma": prior.sigma}
        inner = SimpleNamespace(eps=network, shape=problem.event, **noise)
        if not guided:
            return inner
        eps = Guided(y, problem.observe, STD, inner, GAMMA)
        return SimpleNamespace(eps=eps, shape=problem.event, **noise)

    def literal(sde: Any) -> Draw:
        def draw(steps: int, corrections: int) -> Tensor:
            with torch.device(device), ops.backend("reference"):  # or a U-Net would be fused
                return posterior(sde, (batch,), steps, corrections, TAU)

        return draw

    def native(sde: Any) -> Draw:
        def draw(steps: int, corrections: int) -> Tensor:
            x1 = torch.randn(batch, *problem.event, device=device)
            return sample(sde, (batch,), None, steps, corrections, TAU, x1=x1, backend="native")

        return draw

    ours = prior
    if guided:
        ours = VPSDE(GaussianScore(y, A, STD, prior, gamma=GAMMA), problem.event).to(device)
    compiled = torch.compile(composed, dynamic=False, backend=compiler)
    eager = published(composed)
    draws = {
        "eager": literal(eager),
        "compiled": literal(published(compiled)),
        "native": native(ours),
        "native bfloat16": native(ours),
    }
    if peers and importable(PEERS["azula"]) and not guided:
        draws["azula"] = azula(prior, composed, batch)
    if peers and importable(PEERS["sda"]):
        theirs = sda(problem, network, y, guided)
        draws["sda"] = lambda n, c: theirs.sample((batch,), steps=n, corrections=c, tau=TAU)
        draws["native, objects of sda"] = native(theirs)

    def first(code: str) -> Tensor:
        torch.manual_seed(0)
        return draws[code](2, 0)

    with precision("eager"):
        expected = first("eager")
    x, t = torch.randn(batch, *problem.event, device=device), torch.tensor(0.5, device=device)
    with torch.no_grad(), ops.backend("reference"):
        flops = count_flops(lambda: eager.eps(x, t)) * steps * (1 + corrections)
    return Work(
        {code: lambda draw=draw: draw(steps, corrections) for code, draw in draws.items()},
        lambda code: relative_error(first(code), expected),
        flops=flops,
        limit=1e-3,
    )


def moments_work(problem: Problem, batch: int, steps: int, corrections: int) -> Work:
    """Returns what draws samples of a posterior by the moments of the denoised trajectory, with
    azula, if it is there: its solver is GMRES too, with as many products. All are compared with the
    reference in pure PyTorch."""
    network = make_network(problem.arguments)
    prior = VPSDE(network, shape=problem.event)
    A = Subsample(problem.event, *problem.observed)
    guidance = MMPSGaussianScore(torch.zeros(A.shape), A, STD, prior, iterations=PRODUCTS)
    ours = VPSDE(guidance, problem.event)

    def draw(steps: int, corrections: int, backend: str = "native") -> Tensor:
        x1 = torch.randn(batch, *problem.event)
        return sample(ours, (batch,), None, steps, corrections, TAU, x1=x1, backend=backend)

    def guided(denoiser: Any) -> Any:
        noise = import_module("azula.linalg.covariance").IsotropicCovariance(torch.tensor(STD**2))
        moments = import_module("azula.guidance.mmps").MMPSDenoiser
        y, observe = torch.zeros(A.shape.numel()), lambda x: problem.observe(x).flatten(1)
        return moments(denoiser, y, observe, noise, iterations=PRODUCTS)

    reference = partial(draw, backend="reference")
    draws: dict[str, Draw] = {"native": draw, "native bfloat16": draw}
    if importable(PEERS["azula"]):
        draws["azula"] = azula(prior, Composed(network.kernel, network.order), batch, guided)

    def first(draw: Draw) -> Tensor:
        torch.manual_seed(0)
        return draw(2, 0)

    with precision("eager"):
        expected = first(reference)
    return Work(
        {code: partial(draw, steps, corrections) for code, draw in draws.items()},
        lambda code: relative_error(first(draws[code]), expected),
        flops=count_flops(lambda: reference(1, 0)) * steps * (1 + corrections),
        limit=1e-3,
    )


def importable(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def azula(
    prior: VPSDE,
    eps: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    guided: Callable[[Any], Any] = lambda denoiser: denoiser,
) -> Draw:
    """Draws with azula's predictor-corrector sampler, from an eager network, guided or not."""
    denoise, samplers = import_module("azula.denoise"), import_module("azula.sample")

    class Denoiser(denoise.Denoiser):  # type: ignore[misc, name-defined]
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return prior.mu(t), prior.sigma(t)

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            mu, sigma = self.schedule(t)
            return denoise.DiracPosterior(mean=(x - sigma * eps(x, t)) / mu)

    def draw(steps: int, corrections: int) -> Tensor:
        denoiser = guided(Denoiser())
        sampler = samplers.PCSampler(denoiser, corrections, 0.1, steps=steps, silent=True)
        with ops.backend("reference"):  # the network as azula would have it, in eager PyTorch
            return sampler(torch.randn(batch, *prior.shape))

    return draw


def sda(problem: Problem, network: Any, y: Tensor, guided: bool) -> Any:
    """Makes the noise process of the reference package, with the same network; it draws without
    its progress bar."""
    package: Any = import_module("sda.score")
    package.tqdm = lambda steps, **_: steps
    own = package.MCScoreNet(**problem.arguments)
    own.load_state_dict(network.state_dict())
    sde = package.VPSDE(own.requires_grad_(False), shape=problem.event)
    if not guided:
        return sde
    eps = package.GaussianScore(y, problem.observe, STD, sde, gamma=GAMMA)
    return package.VPSDE(eps, shape=problem.event)
