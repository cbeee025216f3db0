r"""Priors of Lorenz-63 of any rho: one that is told it, and one that infers it with the states.

Both learn from trajectories whose rho is uniform between 20 and 36. The first takes it as context,
:math:`\epsilon_\phi(x(t), t, \rho)`. The second scores states to which rho is appended as a fourth
coordinate, the same at every state, so that a posterior of them is one of rho as well. Both are
length-aware and composed by the junction rule, as the shipped prior of windows up to 9.

The exact posterior of states and rho is a mixture, :math:`p(x \mid y) = \int p(x \mid y, \rho)
\, p(\rho \mid y) \, d\rho`: a particle filter for each rho of a grid, weighted by its evidence.
"""

import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sda_fast import VPSDE, Junction, MCScoreNet, NoisyLorenz63
from sda_fast.data import draw_windows, simulate
from sda_fast.evaluation import particle_filter
from sda_fast.evaluation.particle_filter import systematic
from sda_fast.training.loss import squared_error

from ..fit import fit
from .cases import LENGTH, chain

LOW, HIGH = 20.0, 36.0
MEAN, STD = (LOW + HIGH) / 2, (HIGH - LOW) / 12**0.5
WINDOW, STRIDE, LENGTHS, BATCH = 9, 4, (9, 9, 9, 7, 5, 5, 5, 3, 1), 128
TRAJECTORIES, STATES = 4096, 256  # to learn from

# of the exact posterior: values of rho, particles for each, and transitions that forget the start
GRID, PARTICLES, SPIN_UP = 33, 2048, 512


class AnyLorenz63(NoisyLorenz63):
    """The noisy Lorenz system with rho, which does not change, as the fourth of its variables."""

    def prior(self, shape: Any = (), *, generator: Generator | None = None) -> Tensor:
        """Draws initial states (*shape, 4), those of rho uniformly."""
        rho = LOW + (HIGH - LOW) * torch.rand(*shape, 1, generator=generator)
        return torch.cat((super().prior(shape, generator=generator), rho), dim=-1)

    def f(self, x: Tensor) -> Tensor:
        """Returns the time derivative of states (*, 4)."""
        a, b, c, rho = x.unbind(dim=-1)
        slopes = (self.sigma * (b - a), a * (rho - c) - b, a * b - self.beta * c)
        return torch.stack((*slopes, torch.zeros_like(rho)), dim=-1)

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Draws the states that follow x (*, 4)."""
        y = super().transition(x, generator=generator)
        y[..., 3] = x[..., 3]
        return y

    @staticmethod
    def preprocess(x: Tensor) -> Tensor:
        """Standardises physical states (*, 4)."""
        states = NoisyLorenz63.preprocess(x[..., :3])
        return torch.cat((states, (x[..., 3:] - MEAN) / STD), dim=-1)

    @staticmethod
    def postprocess(x: Tensor) -> Tensor:
        """Maps standardised states (*, 4) to physical ones."""
        return torch.cat((NoisyLorenz63.postprocess(x[..., :3]), MEAN + STD * x[..., 3:]), dim=-1)


system = AnyLorenz63(dt=chain.dt)


@cache
def data() -> Tensor:
    """Simulates standardised trajectories (n, L, 4), each of its own rho, to learn from."""
    return simulate(system, TRAJECTORIES, STATES, generator=Generator().manual_seed(0))


def build(joint: bool, width: int) -> MCScoreNet:
    """Builds a network, of states with rho or told rho, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MCScoreNet(
            features=4 if joint else 3,
            context=0 if joint else 1,
            order=WINDOW // 2,
            composition=Junction(WINDOW, STRIDE),
            length_aware=True,
            embedding=32,
            hidden_features=[width] * 5,
            activation=nn.SiLU,
        )


def loss(network: MCScoreNet, joint: bool) -> Tensor:
    """Returns the denoising loss of a batch of windows."""
    x = draw_windows(data(), BATCH, WINDOW)
    rho = None if joint else x[:, 0, 3:]
    x = x if joint else x[..., :3]
    t = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH
    length = torch.tensor(LENGTHS)[torch.randint(len(LENGTHS), (BATCH,))]
    sde = VPSDE(network, (WINDOW, x.shape[2]))
    return squared_error(network, x, torch.randn_like(x), t, length, sde, context=rho).mean()


def load(joint: bool, folder: Path, width: int, iterations: int, device: str = "cpu") -> VPSDE:
    """Trains a network, unless the folder holds it."""
    path = folder / f"{'joint' if joint else 'told'}-{width}-{iterations}.safetensors"
    network = fit(build(joint, width), partial(loss, joint=joint), path, iterations=iterations)
    return VPSDE(network, (LENGTH, network.features)).to(device)


def context(rho: float) -> Tensor:
    """Returns the context (1) that tells rho."""
    return torch.tensor([(rho - MEAN) / STD])


@cache
def prepared(run: int) -> Tensor:
    """Draws states of the stationary laws of all rho of the grid, with shape (R, n, 4)."""
    generator = Generator().manual_seed(run)
    x = system.prior((GRID, PARTICLES), generator=generator)
    x[..., 3] = torch.linspace(LOW, HIGH, GRID)[:, None]
    return system.trajectory(x, SPIN_UP, last=True, generator=generator)


def filtered(observation: Any, run: int, seed: int, members: int) -> Tensor:
    """Draws states with rho (N, L, 4) from their exact posterior, given what was observed."""
    generator = Generator().manual_seed(1000 * run + seed)
    evidence, lineages = [], []
    for x in prepared(run):
        with warnings.catch_warnings():  # a rho that is far off leaves few particles, and no weight
            warnings.simplefilter("ignore", RuntimeWarning)
            particles = particle_filter(system, observation, x, length=LENGTH, generator=generator)
        evidence.append(particles.log_likelihood)
        lineages.append(particles)

    weights = torch.tensor(evidence, dtype=torch.float64).softmax(dim=0)
    count = systematic(weights, members, generator=generator).bincount(minlength=GRID).tolist()
    drawn = [p.trajectories(n, generator=generator) for p, n in zip(lineages, count, strict=True)]
    return torch.cat(drawn)[torch.randperm(members, generator=generator)]
