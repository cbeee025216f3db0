"""A truth, what is observed of it, and the guidance that follows from that."""

__all__ = ["Scene", "Shifted", "make_scene"]

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from sda_fast import VPSDE, GaussianScore, Guidance, LikelihoodScore, Standardisation
from sda_fast.observation import ObservationOperator

from .cases import Case


class Shifted(nn.Module):
    r"""The likelihood of an observation of a field that may have been shifted along y.

    .. math:: p(y \mid x) = \frac{1}{S} \sum_{s = 0}^{S - 1} N(y \mid A(T^s x), \mathrm{std}^2)

    where T shifts by N / S points. Kolmogorov's forcing sin(4y) is the same after a quarter of the
    square, and so is the law of the flow: for S = 4 a posterior has four modes of equal weight,
    shifts of each other.

    Arguments:
        A: The observation operator.
        y: The observation; NaN where nothing was observed.
        std: The standard deviation of the noise.
        shifts: The number S.
    """

    def __init__(self, A: ObservationOperator, y: Tensor, std: float, shifts: int):
        super().__init__()
        self.A, self.y, self.std, self.shifts = A, y, std, shifts

    def shift(self, x: Tensor, s: int) -> Tensor:
        """Applies T s times."""
        return x.roll(s * (x.shape[-1] // self.shifts), dims=-1)

    def residuals(self, x: Tensor) -> Tensor:
        """Returns y - A(T^s x) for each shift, with shape (B, S, M) for the M numbers observed."""
        seen = ~self.y.isnan()
        return torch.stack(
            [(self.y - self.A(self.shift(x, s)))[:, seen] for s in range(self.shifts)], dim=1
        )

    def forward(self, x: Tensor, variance: float = 0.0) -> Tensor:
        """Maps trajectories (B, *event) and a variance to log-likelihoods (B)."""
        squares = self.residuals(x).square().sum(dim=-1) / (self.std**2 + variance)
        return torch.logsumexp(-squares / 2, dim=1)


@dataclass(frozen=True, eq=False)
class Scene:
    """A case of one truth. States are physical.

    Arguments:
        case: The case.
        truth: The truth, with shape (L, 2, N, N).
        A: The observation operator.
        y: The observation; NaN where nothing was observed.
    """

    case: Case
    truth: Tensor
    A: ObservationOperator
    y: Tensor

    @property
    def likelihood(self) -> Shifted:
        return Shifted(self.A, self.y, self.case.std, self.case.shifts)

    def guide(self, prior: VPSDE, standard: Standardisation, gamma: float) -> Guidance:
        """Returns the posterior's noise estimator, of standardised trajectories."""
        if self.case.shifts > 1:
            likelihood = self.likelihood
            return LikelihoodScore(
                lambda x, v: likelihood(standard.postprocess(x), v), prior, gamma=gamma
            )
        return GaussianScore(
            self.y, lambda x: self.A(standard.postprocess(x)), self.case.std, prior, gamma=gamma
        )

    def modes(self, x: Tensor) -> Tensor:
        """Returns which shift explains each of some trajectories (B, *event) best."""
        return self.likelihood.residuals(x).square().mean(dim=-1).argmin(dim=1)

    def misfit(self, x: Tensor) -> Tensor:
        """Returns the root-mean-square of y - A(x) in units of the noise, for each trajectory and
        shift, with shape (B, S). The truth's is near 1 for one shift."""
        return self.likelihood.residuals(x).square().mean(dim=-1).sqrt() / self.case.std


def make_scene(case: Case, truth: Tensor, seed: int) -> Scene:
    """Observes a truth (L, 2, N, N)."""
    A = case.observe(truth.shape)
    generator = Generator().manual_seed(seed)
    y = A(truth[None])[0]
    y = y + case.std * torch.randn(y.shape, generator=generator)
    if case.seen is not None:
        y = y.masked_fill(~case.seen(y.shape), math.nan)

    return Scene(case, truth, A, y)
