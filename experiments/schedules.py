r"""Where evaluations pay, in closed form: time grids, corrections, and other kinds of corrector.

    python -m experiments.schedules

A rotation in the plane with transition noise of a small standard deviation, 33 states, the first
coordinate observed at every 8th state with a standard deviation of 0.05 ("lo") or at every one
with 0.25 ("hi"); "noisier" is "lo" of a chain with more noise. Windows' scores are exact, composed
by the junction rule and guided as a network's are, so that the law of the samples follows by
recursion (:func:`sda_fast.evaluation.sampler_law`). Tables give its Kullback-Leibler divergence
from the posterior, in hundredths of a nat per dimension.

A correction leaves noise of its own: where the estimate is :math:`\lambda q`, q in units of sigma,
Langevin steps of size :math:`\delta` multiply the variance by
:math:`1 / (1 - \delta \lambda / 2)`. Three remedies cost no further evaluations.

*Preconditioned* Langevin: with :math:`K` the covariance over :math:`\sigma^2`, that of the prior or
of the posterior, :math:`q \gets q - \delta K \epsilon + \sqrt{2 \delta} K^{1/2} z` and
:math:`\delta = \tau / \operatorname{mean}(\epsilon K \epsilon)`.

*Underdamped*: a momentum p is kept, :math:`p \gets c p + \sqrt{1 - c^2} z` and a leapfrog step of
size :math:`h = \sqrt{2 \delta}`. With c = 0 it is plain Langevin. The last estimate is the
predictor's.

*Averaged noise*: :math:`q \gets q - \delta \epsilon + \sqrt{2 \delta} (z + z') / 2` with z' the
noise of the correction before, whose stationary law is exact for Gaussians at every step size.

References:
    | Rational Construction of Stochastic Numerical Methods for Molecular Sampling
      (Leimkuhler & Matthews, 2013)
    | https://doi.org/10.1093/amrx/abs010
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from experiments import study
from sda_fast import VPSDE, GaussianScore, Junction, MCScoreNet, Recipe, preset
from sda_fast.evaluation import (
    Gaussian,
    GaussianEstimator,
    LinearGaussianChain,
    WindowEstimator,
    kl_divergence,
)
from sda_fast.sampler.plan import make_schedule
from sda_fast.schedule import coefficients

LENGTH, WINDOW, STRIDE, GAMMA = 33, 9, 4, 3e-2
D = torch.float64

Map = tuple[Tensor, Tensor]  # M and v of an estimate M x + v


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior of a rotating chain.

    Arguments:
        angle: Radians a step.
        variance: Of the transition noise; that of a state is 1.
        every: Every how many states the first coordinate is observed.
        std: The standard deviation of the observation noise.
    """

    angle: float
    variance: float
    every: int
    std: float

    @cached_property
    def chain(self) -> LinearGaussianChain:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        A = math.sqrt(1 - self.variance) * torch.tensor([[cos, sin], [-sin, cos]], dtype=D)
        return LinearGaussianChain.stationary(
            A, torch.zeros(2, dtype=D), self.variance * torch.eye(2, dtype=D)
        )

    @cached_property
    def observed(self) -> tuple[Tensor, Tensor]:
        """The observation matrix, with shape (m, n), and what was observed."""
        generator = torch.Generator().manual_seed(0)
        x = self.chain.joint(LENGTH).sample(generator=generator)
        H = torch.eye(2 * LENGTH, dtype=D)[:: 2 * self.every]
        return H, H @ x + self.std * torch.randn(len(H), dtype=D, generator=generator)

    @cached_property
    def posterior(self) -> Gaussian:
        H, y = self.observed
        R = self.std**2 * torch.eye(len(H), dtype=D)
        return self.chain.joint(LENGTH).condition(H, R, y)

    def guided(self, composed: bool = True) -> VPSDE:
        """Returns the noise process of the posterior, its prior composed of windows or exact."""
        prior = VPSDE(nn.Identity(), shape=(LENGTH, 2))
        if composed:
            rule = Junction(WINDOW, STRIDE)
            net = MCScoreNet(2, order=WINDOW // 2, composition=rule, length_aware=True)
            net.kernel = WindowEstimator(self.chain.joint(WINDOW), WINDOW, prior)  # type: ignore[assignment]
            prior.eps = net
        else:
            prior.eps = GaussianEstimator(self.chain.joint(LENGTH), prior)

        def observe(x: Tensor) -> Tensor:
            return x[..., :: self.every, 0]

        return VPSDE(
            GaussianScore(self.observed[1], observe, self.std, prior, gamma=GAMMA), prior.shape
        )

    @cached_property
    def cache(self) -> dict[tuple[str, float], Map]:
        return {}

    def affine(self, kind: str, t: float) -> Map:
        """Returns the guided estimate of a composed, or of an exact, prior, or that of the prior
        alone."""
        if (kind, t) not in self.cache:
            sde = self.guided(composed=kind == "composed")
            eps = sde.eps.sde.eps if kind == "prior" else sde.eps
            n = sde.shape.numel()
            probes = torch.cat((torch.zeros(1, n, dtype=D), torch.eye(n, dtype=D)))
            with torch.no_grad():
                estimates = eps(probes.reshape(-1, *sde.shape), torch.tensor(t, dtype=D))
            v, *columns = estimates.flatten(1)
            self.cache[kind, t] = torch.stack(columns, dim=1) - v[:, None], v
        return self.cache[kind, t]


PROBLEMS = {
    "lo": Problem(0.2, 4e-4, 8, 0.05),
    "hi": Problem(0.2, 4e-4, 1, 0.25),
    "noisier": Problem(0.3, 1 - 0.99**2, 8, 0.05),
}


@dataclass
class State:
    """The law of the state x and of what a corrector keeps, a: jointly Gaussian."""

    mean: Tensor
    S: Tensor

    def __init__(self, n: int):
        self.mean, self.S, self.n = torch.zeros(2 * n, dtype=D), torch.eye(2 * n, dtype=D), n

    def map(self, P: Tensor, c: Tensor, noise: Tensor | None = None) -> None:
        """Takes (x, a) to P (x, a) + c + noise of a covariance."""
        self.mean, self.S = P @ self.mean + c, P @ self.S @ P.T
        if noise is not None:
            self.S = self.S + noise

    def mean_square(self, M: Tensor, v: Tensor, K: Tensor | None = None) -> float:
        """Returns the expectation of mean(e K e) for e = M x + v."""
        m = M @ self.mean[: self.n] + v
        square = M @ self.S[: self.n, : self.n] @ M.T + torch.outer(m, m)
        return float((square if K is None else K @ square).trace()) / self.n


def blocks(xx: Tensor, xa: Tensor, ax: Tensor, aa: Tensor) -> Tensor:
    return torch.cat((torch.cat((xx, xa), dim=1), torch.cat((ax, aa), dim=1)))


Corrector = Callable[[State, Map, float, float, Tensor], None]  # state, estimate, sigma, tau, K


def plain(state: State, estimate: Map, sigma: float, tau: float, K: Tensor) -> None:
    """Langevin, by K = I, or preconditioned."""
    (M, v), n = estimate, state.n
    eye, zero = torch.eye(n, dtype=D), torch.zeros(n, n, dtype=D)
    delta = tau / state.mean_square(M, v, K)
    c = torch.cat((-sigma * delta * K @ v, torch.zeros(n, dtype=D)))
    noise = blocks(2 * delta * sigma**2 * K, zero, zero, zero)
    state.map(blocks(eye - sigma * delta * K @ M, zero, zero, eye), c, noise)


def averaged(state: State, estimate: Map, sigma: float, tau: float, K: Tensor) -> None:
    """Langevin whose noise is the mean of this correction's and of the one's before."""
    (M, v), n = estimate, state.n
    eye, zero = torch.eye(n, dtype=D), torch.zeros(n, n, dtype=D)
    delta = tau / state.mean_square(M, v)
    half = sigma * math.sqrt(2 * delta) / 2
    c = torch.cat((-sigma * delta * v, torch.zeros(n, dtype=D)))
    noise = blocks(half**2 * eye, half * eye, half * eye, eye)
    state.map(blocks(eye - sigma * delta * M, half * eye, zero, zero), c, noise)


def underdamped(keep: float) -> Corrector:
    """Returns a leapfrog step whose momentum is kept in part."""

    def correct(state: State, estimate: Map, sigma: float, tau: float, K: Tensor) -> None:
        (M, v), n = estimate, state.n
        eye, zero = torch.eye(n, dtype=D), torch.zeros(n, n, dtype=D)
        h = math.sqrt(2 * tau / state.mean_square(M, v))
        nothing = torch.zeros(2 * n, dtype=D)
        kick = blocks(eye, zero, -h / 2 * M, eye)
        push = torch.cat((torch.zeros(n, dtype=D), -h / 2 * v))

        state.map(
            blocks(eye, zero, zero, keep * eye),
            nothing,
            blocks(zero, zero, zero, (1 - keep**2) * eye),
        )
        state.map(kick, push)
        state.map(blocks(eye, sigma * h * eye, zero, eye), nothing)
        state.map(kick, push)

    return correct


def divergence(
    problem: Problem, recipe: Recipe, corrector: Corrector = plain, precondition: str | None = None
) -> float:
    """Returns the divergence of a recipe's samples from the posterior, in hundredths of a nat per
    dimension; infinite where a correction is not stable.

    Arguments:
        problem: The posterior.
        recipe: The schedule.
        corrector: The kind of corrector.
        precondition: "prior" or "exact", the posterior: whose covariance K is.
    """
    n = 2 * LENGTH
    eye, zero, none = torch.eye(n, dtype=D), torch.zeros(n, n, dtype=D), torch.zeros(n, dtype=D)
    times, counts, taus = make_schedule(recipe.steps, recipe.corrections, recipe.tau)
    mu, sigma = (level.tolist() for level in coefficients(problem.guided(), times))
    now = times.tolist()
    state = State(n)

    def predict(P: Tensor, c: Tensor) -> None:
        state.map(blocks(P, zero, zero, eye), torch.cat((c, none)))

    for i, (count, tau) in enumerate(zip(counts, taus, strict=True), start=1):
        r = mu[i] / mu[i - 1]
        b = sigma[i] - r * sigma[i - 1]
        M, v = problem.affine("composed", now[i - 1])
        predict(r * eye + b * M, b * v)

        if count:
            K = eye
            if precondition:
                # the estimate of a Gaussian is sigma times the state's precision
                K = torch.linalg.inv(problem.affine(precondition, now[i])[0]) / sigma[i]
                K = (K + K.T) / 2
            for _ in range(count):
                corrector(state, problem.affine("composed", now[i]), sigma[i], tau, K)

    if recipe.denoise:
        M, v = problem.affine("composed", now[-1])
        predict((eye - sigma[-1] * M) / mu[-1], -sigma[-1] / mu[-1] * v)

    try:
        law = Gaussian(state.mean[:n], state.S[:n, :n])
        kl = kl_divergence(law, problem.posterior)
    except torch.linalg.LinAlgError:
        return math.inf
    return 100 * kl / n if math.isfinite(kl) and kl < 1e6 else math.inf


def even(steps: int, corrections: int, tau: float) -> Recipe:
    name = f"even steps, {steps} × {corrections}, tau {tau:g}"
    return Recipe(name, "junction", steps, corrections, tau)


def grid(first: float, power: float, steps: int) -> tuple[float, ...]:
    return tuple(first * (1 - n / steps) ** power for n in range(steps + 1))


def found() -> Recipe:
    """Returns a schedule near the best of 250 that were drawn at random."""
    times = grid(0.9, 2.5, 41)
    corrections = tuple(3 if t < 0.5 else 0 for t in times[1:-4]) + (0,) * 4
    tau = tuple(0.7 if t > 0.02 else 0.175 for t in times[1:])
    return Recipe(
        "near the best of 250 at random: from 0.9, power 2.5, 41 steps, 3 corrections below 0.5, "
        "tau 0.7, a quarter of it below 0.02, none in the last 4 steps",
        "junction",
        times,
        corrections,
        tau,
    )


def schedules() -> list[Recipe]:
    """Lists the schedules of the first table."""
    times = grid(0.9, 2, 64)
    small = tuple(0.5 if t > 0.01 else 0.25 for t in times[1:])
    return [
        even(256, 16, 0.25),
        even(64, 4, 0.5),
        even(64, 1, 0.5),
        even(32, 3, 0.25),
        Recipe("quadratic grid from 0.9, 64 × 1, tau 0.5", "junction", times, 1, 0.5),
        Recipe("the same, tau 0.25 below t = 0.01", "junction", times, 1, small),
        found(),
        *map(preset, ("draft", "fast", "accurate")),
    ]


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """Returns a recipe with every tau larger by a factor."""
    tau = recipe.tau
    many = factor * tau if isinstance(tau, float) else tuple(factor * t for t in tau)
    return replace(recipe, tau=many)


CORRECTORS: dict[str, tuple[Corrector, str | None]] = {
    "plain": (plain, None),
    "averaged noise": (averaged, None),
    "underdamped, c = 0.5": (underdamped(0.5), None),
    "underdamped, c = 0.8": (underdamped(0.8), None),
    "preconditioned by the prior": (plain, "prior"),
    "preconditioned by the posterior": (plain, "exact"),
}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def write(x: float) -> str:
    return "unstable" if math.isinf(x) else f"{x:.2g}" if x < 100 else f"{x:.0f}"


def by_schedule() -> str:
    rows = []
    for recipe in schedules():
        scores = [write(divergence(problem, recipe)) for problem in PROBLEMS.values()]
        rows.append([recipe.name, recipe.evaluations, *scores])
    return study.table(["", "evaluations", *PROBLEMS], rows)


def by_corrector() -> str:
    """Writes the divergence of each kind of corrector with the best of five multiples of tau."""
    bases = [even(64, 4, 0.5), found(), preset("fast"), preset("accurate")]
    rows = []
    for name, (corrector, precondition) in CORRECTORS.items():
        cells = []
        for base in bases:
            best = {}
            for factor in FACTORS:
                recipe = scaled(base, factor)
                best[factor] = [
                    divergence(p, recipe, corrector, precondition) for p in PROBLEMS.values()
                ]
            least = [min(scores) for scores in zip(*best.values(), strict=True)]
            cells.append(" / ".join(map(write, least)))
        rows.append([name, *cells])
    names = ["even, 64 × 4", "near the best at random", "fast", "accurate"]
    return study.table([" / ".join(PROBLEMS), *names], rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(by_schedule(), flush=True)
    print("\n" + by_corrector())


if __name__ == "__main__":
    main()
