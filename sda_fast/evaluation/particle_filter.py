r"""The bootstrap particle filter, and the smoother that its ancestries are.

Particles follow the chain, :math:`x_i^n \sim p(x_i \mid x_{i-1}^{a_n})`, are weighted by what was
observed, :math:`w_i^n \propto p(y_i \mid x_i^n)`, and resampled. It is exact as the particles grow
in number, for any chain and any likelihood: the ground truth where nothing is Gaussian. Its price
is degeneracy. A particle's ancestors have survived every later resampling, so that few of them are
distinct far back, and with many observed numbers no particle comes near all of them.

References:
    | Novel approach to nonlinear/non-Gaussian Bayesian state estimation (Gordon et al., 1993)
    | https://doi.org/10.1049/ip-f-2.1993.0015
    | A Tutorial on Particle Filtering and Smoothing (Doucet & Johansen, 2009)
"""

__all__ = ["Particles", "particle_filter", "systematic"]

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from .._arguments import floating

# With an effective sample size below this at any step the filter warns.
FEW = 10


def systematic(weights: Tensor, n: int, *, generator: Generator | None = None) -> Tensor:
    """Draws indices by systematic resampling: one uniform number places n equidistant points.

    References:
        | Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models
        | (Kitagawa, 1996), https://doi.org/10.1080/10618600.1996.10474692

    Arguments:
        weights: The weights, which need not sum to 1, with shape (N).
        n: The number of indices.
        generator: The source of randomness.

    Returns:
        The indices in ascending order, each floor or ceil of n times its weight often.

    Raises:
        ValueError: A weight is negative, or the weights do not have a positive finite sum.
    """
    total, negative = float(weights.double().sum()), int((weights < 0).sum())
    if weights.ndim != 1 or negative or not 0 < total < math.inf:
        raise ValueError(
            f"weights must be of shape (N), none negative, with a positive finite sum, but are of "
            f"shape {tuple(weights.shape)}, {negative} of them negative, with the sum {total}"
        )
    edges = weights.double().cumsum(dim=0)
    u = torch.rand((), dtype=torch.float64, generator=generator)
    points = (torch.arange(n, dtype=torch.float64) + u) / n
    points = points.clamp(max=1 - 2**-53).to(edges.device)

    return torch.searchsorted(edges / edges[-1], points, right=True)


@dataclass(frozen=True, eq=False)
class Particles:
    r"""What a particle filter leaves behind: n particles at each of L steps.

    Arguments:
        states: The particles, before resampling, with shape (L, n, *state).
        log_weights: Their normalised log-weights, with shape (L, n), in float64.
        ancestors: The indices of their ancestors among those of the step before, with shape (L, n).
        ess: The effective sample size :math:`1 / \sum_n (w_i^n)^2` of each step, with shape (L).
        log_likelihood: The estimate of the marginal :math:`\log p(y)`, in nats.
    """

    states: Tensor
    log_weights: Tensor
    ancestors: Tensor
    ess: Tensor
    log_likelihood: float

    def mean(self) -> Tensor:
        """Returns the mean of each state given what was observed so far, with shape (L, *state)."""
        return self._average(self.states.double())

    def variance(self) -> Tensor:
        """Returns the variance of each element of each state given the observations so far, with
        shape (L, *state)."""
        return self._average((self.states.double() - self.mean()[:, None]).square())

    def _average(self, x: Tensor) -> Tensor:
        weights = self.log_weights.exp()
        weights = weights.reshape(*weights.shape, *[1] * (x.ndim - 2))
        # a particle that diverged has no weight, but 0 times NaN is NaN
        return (weights * x.where(weights > 0, 0.0)).sum(dim=1)

    def trajectories(self, n: int | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draws trajectories from the posterior given all observations, by ancestry.

        Arguments:
            n: The number of trajectories. By default that of the particles.
            generator: The source of randomness.

        Returns:
            Trajectories of equal weights, in random order, with shape (n, L, *state).
        """
        index = self._drawn(n, generator)
        lineage = [self.states[-1, index]]
        for i in reversed(range(1, len(self.states))):
            index = self.ancestors[i, index]
            lineage.append(self.states[i - 1, index])

        return torch.stack(lineage[::-1], dim=1)

    def distinct(self) -> Tensor:
        """Returns how many particles of each step are ancestors of the last ones, with shape (L):
        how many different states the trajectories can hold there."""
        index = torch.nonzero(self.log_weights[-1] > -math.inf).flatten()
        counts = [len(index)]
        for i in reversed(range(1, len(self.states))):
            index = self.ancestors[i, index].unique()
            counts.append(len(index))

        return torch.tensor(counts[::-1])

    def _drawn(self, n: int | None, generator: Generator | None) -> Tensor:
        n = self.states.shape[1] if n is None else n
        index = systematic(self.log_weights[-1].exp(), n, generator=generator)
        # systematic draws are sorted: a subset of them would be of few families
        return index[torch.randperm(n, generator=generator).to(index.device)]


@torch.no_grad()
def particle_filter(
    chain: Any,
    observation: Any,
    x: Tensor,
    *,
    length: int | None = None,
    threshold: float = 1.0,
    generator: Generator | None = None,
) -> Particles:
    """Filters a Markov chain by bootstrap particles with systematic resampling.

    Arguments:
        chain: The system, with a method `transition(x, generator=)`.
        observation: What was observed, an :class:`Observation`, or any object with methods
            `observed(step)` and `log_likelihood(step, x)`, from states (n, *state) to (n).
        x: Draws of the state :math:`x_0` *before* the first, as in
            :meth:`sda_fast.MarkovChain.trajectory`, with shape (n, *state).
        length: The number L of states. By default that of the observation; more are a forecast.
        threshold: Particles are resampled at observed steps whose effective sample size is at most
            this share of n: at all of them by default.
        generator: The source of randomness.

    Returns:
        The particles. An effective sample size below 10 gives a warning.

    Raises:
        ValueError: There are no particles, or length or threshold is out of its range.
        FloatingPointError: No particle has a positive finite likelihood. It says at which step.
    """
    n, length = len(x), len(observation) if length is None else length
    if n < 1 or length < 1:
        raise ValueError(f"x and length must not be empty, but are of {n} and {length} states")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, but is {threshold}")

    uniform = torch.full((n,), -math.log(n), dtype=torch.float64, device=x.device)
    same = torch.arange(n, device=x.device)
    x = floating(x)
    states = x.new_empty(length, *x.shape)
    log_weights, ancestors = uniform.repeat(length, 1), same.repeat(length, 1)
    log_evidence = 0.0

    log_w, ancestor = uniform, same
    for i in range(length):
        x = chain.transition(x[ancestor], generator=generator)
        states[i], ancestors[i] = x, ancestor
        ancestor = same

        if observation.observed(i):
            log_w, evidence = _reweigh(log_w, observation.log_likelihood(i, x), i)
            log_evidence += evidence
        log_weights[i] = log_w

        if observation.observed(i) and _ess(log_w) <= threshold * n:
            ancestor = systematic(log_w.exp(), n, generator=generator)
            log_w = uniform

    ess = _ess(log_weights)
    least, at = ess.min(dim=0)
    if n >= FEW > least:
        warnings.warn(
            f"the effective sample size of {n} particles falls to {float(least):.1f} at step "
            f"{int(at)}: use more particles",
            RuntimeWarning,
            stacklevel=2,
        )

    return Particles(states, log_weights, ancestors, ess, log_evidence)


def _ess(log_w: Tensor) -> Tensor:
    # normalised weights; rounding must not bring it above n
    return (1 / (2 * log_w).exp().sum(dim=-1)).clamp(max=log_w.shape[-1])


def _reweigh(log_w: Tensor, log_likelihood: Tensor, step: int) -> tuple[Tensor, float]:
    """Returns the new normalised log-weights, and the log of what they summed to."""
    if log_likelihood.shape != log_w.shape:
        raise ValueError(
            f"log_likelihood must give one number for each of {len(log_w)} particles, but gives "
            f"shape {tuple(log_likelihood.shape)}"
        )
    # a particle that diverged has no likelihood
    log_w = log_w + log_likelihood.double().nan_to_num(-math.inf, math.inf, -math.inf)
    total = log_w.logsumexp(dim=0)
    if not bool(total.isfinite()):
        raise FloatingPointError(
            f"no weights at step {step}: of {len(log_w)} particles "
            f"{int(log_likelihood.isnan().sum())} have a likelihood that is NaN, "
            f"{int((log_likelihood == -math.inf).sum())} one of zero, "
            f"{int((log_likelihood == math.inf).sum())} an infinite one"
        )

    return log_w - total, float(total)
