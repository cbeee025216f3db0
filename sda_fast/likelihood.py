r"""Likelihoods of what observations look like in practice.

Each is a module that maps trajectories (B, *event) to log-likelihoods (B), for
:class:`sda_fast.LikelihoodScore`. Its second argument is the variance :math:`v` of the difference
between the trajectory and the one that is observed, in terms of what is observed: 0 for a
trajectory that is known, more for one that is only estimated. Elements of y that are NaN were not
observed; a first dimension of the batch is for observations that differ from trajectory to
trajectory. Likelihoods of independent instruments are added: `StudentT(...) + Poisson(...)`.
"""

__all__ = ["Censored", "Gaussian", "Huber", "Likelihood", "LogNormal", "Poisson", "StudentT"]

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ._arguments import checked, parameter
from ._calls import hooked
from ._normal import log_ndtr
from .reference import widen

Operator = Callable[[Tensor], Tensor]


class Likelihood(nn.Module):
    """A likelihood of independent observations, given trajectories.

    A subclass gives :meth:`log_density`.

    Arguments:
        y: The observations, with shape (*observation), or one for each trajectory,
            (B, *observation); NaN where nothing was observed.
        A: The observation operator, from trajectories (B, *event) to (B, *observation). Its
            derivative must be finite, also where nothing was observed.

    Raises:
        ValueError: y is infinite, or not in the likelihood's domain; a parameter is out of its
            range, or does not broadcast to y.
        TypeError: y is complex.
    """

    y: Tensor

    def __init__(self, y: Tensor, A: Operator):
        super().__init__()
        self.register_buffer("y", checked(y))
        self.A = A

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each observation, up to a constant.

        Arguments:
            y: The observations, broadcastable to the prediction, none of them NaN.
            prediction: What is predicted, with shape (B, *observation).
            variance: The variance of the prediction.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, variance: float = 0.0) -> Tensor:
        """Maps trajectories (B, *event) and a variance to log-likelihoods (B); those of predictions
        of a half type are float32."""
        return self.of_prediction(self.A(x), len(x), variance)

    def of_prediction(self, prediction: Tensor, batch: int, variance: float) -> Tensor:
        """Returns the log-likelihoods (B) of what is predicted.

        Arguments:
            prediction: What the operator makes of trajectories, with shape (B, *observation).
            batch: The number B of the trajectories.
            variance: The variance of the prediction.

        Raises:
            ValueError: The prediction has another shape.
        """
        shape, seen = self.y.shape, prediction.shape
        each = len(shape) == len(seen) and shape[1:] == seen[1:] and shape[:1] in ((1,), (batch,))
        if seen[:1] != (batch,) or not (each or shape == seen[1:]):
            raise ValueError(
                f"y has shape {tuple(shape)}, but A(x) has shape {tuple(seen)}, not "
                f"({batch}, *observation), where y is (*observation) or ({batch}, *observation)"
            )

        prediction = widen(prediction)
        y = self.y.to(prediction.dtype)
        missing = y.isnan()
        # stand-ins that every likelihood can evaluate: it puts no NaN into the gradient, as A does
        # by 0 * inf where its own derivative is infinite, observed or not
        y, prediction = torch.where(missing, 1.0, y), torch.where(missing, 1.0, prediction)
        density = self.log_density(y, prediction, variance)

        return torch.where(missing, 0.0, density)[..., None].flatten(1).sum(dim=1)

    def __add__(self, other: "Likelihood") -> "Likelihood":
        if not isinstance(other, Likelihood):
            return NotImplemented
        return _Sum(*instruments(self), *instruments(other))


def instruments(likelihood: Likelihood) -> Iterable[Likelihood]:
    """Returns what a likelihood is the sum of: itself, or the terms of a sum, none of them one."""
    if type(likelihood) is _Sum and not hooked(likelihood):
        return cast(Iterable[Likelihood], likelihood.terms)
    return (likelihood,)


class _Sum(Likelihood):
    """Independent instruments: the sum of their log-likelihoods."""

    def __init__(self, *terms: Likelihood):
        nn.Module.__init__(self)
        self.terms = nn.ModuleList(terms)

    def forward(self, x: Tensor, variance: float = 0.0) -> Tensor:
        total = self.terms[0](x, variance)
        for term in self.terms[1:]:
            total = total + term(x, variance)
        return total


def _positive(name: str, value: float) -> float:
    """Checks a number that must be positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return float(value)


class Gaussian(Likelihood):
    r"""Gaussian noise, :math:`y \sim N(A(x), s^2 + v)`.

    Arguments:
        y: The observations, with shape (*observation); NaN where nothing was observed.
        A: The observation operator.
        std: The standard deviation :math:`s`, broadcastable with y.
    """

    std: Tensor

    def __init__(self, y: Tensor, A: Operator, std: float | Tensor):
        super().__init__(y, A)
        self.register_buffer("std", parameter("std", std, self.y))

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each observation."""
        total = self.std**2 + variance
        return -((y - prediction) ** 2 / total + torch.log(2 * math.pi * total)) / 2


class StudentT(Likelihood):
    r"""Heavy-tailed noise, :math:`(y - A(x)) / \sqrt{s^2 + v}` with a Student-t distribution: an
    outlier pulls less the farther it lies.

    Arguments:
        y: The observations, with shape (*observation); NaN where nothing was observed.
        A: The observation operator.
        scale: The scale :math:`s`, broadcastable with y.
        df: The degrees of freedom; the fewer, the heavier the tails. At most 1e20, where all digits
            are those of :class:`Gaussian`.
    """

    scale: Tensor

    def __init__(self, y: Tensor, A: Operator, scale: float | Tensor, df: float = 3.0):
        super().__init__(y, A)
        self.register_buffer("scale", parameter("scale", scale, self.y))
        self.df = _positive("df", df)
        if self.df > 1e20:
            raise ValueError(f"df must be at most 1e20 (a Gaussian has infinitely many), got {df}")

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each observation."""
        square = self.scale**2 + variance
        kernel = torch.log1p((y - prediction) ** 2 / square / self.df)
        norm = _log_ratio(self.df) - torch.log(2 * math.pi * square) / 2
        return norm - (self.df + 1) / 2 * kernel


def _log_ratio(df: float) -> float:
    r"""Returns :math:`\log \Gamma(\frac{\nu + 1}{2}) - \log \Gamma(\frac \nu 2) -
    \frac12 \log \frac \nu 2`, whose terms cancel for a large :math:`\nu`."""
    x = df / 2
    if x < 100:
        return math.lgamma(x + 0.5) - math.lgamma(x) - math.log(x) / 2
    return -1 / (8 * x) + 1 / (192 * x**3) - 1 / (640 * x**5)


class Huber(Likelihood):
    r"""Noise with a Gaussian centre and exponential tails (Huber, 1964): with
    :math:`z = (y - A(x)) / \sqrt{s^2 + v}`, the log-density is :math:`-z^2 / 2` up to
    :math:`|z| = \delta` and :math:`-\delta (|z| - \delta / 2)` beyond, up to a constant.

    Arguments:
        y: The observations, with shape (*observation); NaN where nothing was observed.
        A: The observation operator.
        scale: The scale :math:`s`, broadcastable with y.
        delta: The threshold :math:`\delta`, in units of the scale.
    """

    scale: Tensor

    def __init__(self, y: Tensor, A: Operator, scale: float | Tensor, delta: float = 1.345):
        super().__init__(y, A)
        self.register_buffer("scale", parameter("scale", scale, self.y))
        self.delta = _positive("delta", delta)

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each observation, up to a constant."""
        z = (y - prediction) / torch.sqrt(self.scale**2 + variance)
        return -nn.functional.huber_loss(z, torch.zeros_like(z), reduction="none", delta=self.delta)


class Poisson(Likelihood):
    r"""Counts of a rate, :math:`y \sim \operatorname{Poisson}(A(x))`.

    A rate that is only known to a variance :math:`v` has counts of variance :math:`A(x) + v`, and
    :math:`y + v` is taken to be of the Poisson distribution with mean :math:`A(x) + v`, which has
    that variance too.

    Arguments:
        y: The counts, with shape (*observation), zero or positive; NaN where nothing was observed.
        A: The rate, positive: for example `lambda x: x[..., 0].exp()`.
        floor: What a predicted rate is at least.
    """

    def __init__(self, y: Tensor, A: Operator, floor: float = 1e-6):
        super().__init__(y, A)
        if bool((self.y < 0).any()):
            least = float(self.y.nan_to_num().min())
            raise ValueError(f"y must be counts, zero or positive, got {least:g}")
        self.floor = _positive("floor", floor)

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each observation."""
        rate, count = prediction.clamp_min(self.floor) + variance, y + variance
        return count * torch.log(rate) - rate - torch.lgamma(count + 1)


class LogNormal(Likelihood):
    r"""Multiplicative noise on a positive quantity, :math:`\log y \sim N(\log A(x), s^2)`, as of
    rain. The variance of :math:`\log A(x)` is :math:`v / A(x)^2`, to first order, and a constant to
    the gradient, which would else flee from small values.

    Arguments:
        y: The observations, with shape (*observation), positive; NaN where nothing was observed.
        A: The quantity, positive.
        std: The standard deviation :math:`s` of the logarithm, broadcastable with y.
        floor: What a prediction is at least.
    """

    std: Tensor

    def __init__(self, y: Tensor, A: Operator, std: float | Tensor, floor: float = 1e-6):
        super().__init__(y, A)
        self.register_buffer("std", parameter("std", std, self.y))
        if bool((self.y <= 0).any()):
            raise ValueError("y must be positive")
        self.floor = _positive("floor", floor)

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each observation."""
        mean = prediction.clamp_min(self.floor)
        total = self.std**2 + variance / mean.detach() ** 2
        error = torch.log(y) - torch.log(mean)
        return -(error**2 / total + torch.log(2 * math.pi * total)) / 2 - torch.log(y)


class Censored(Likelihood):
    r"""A sensor that saturates: :math:`y` is :math:`A(x) + s z` clipped to an interval. A reading
    at an end says only that the value lies beyond (Tobin, 1958).

    Arguments:
        y: The observations, with shape (*observation), within the interval; NaN where nothing was
            observed.
        A: The observation operator, before saturation.
        std: The standard deviation :math:`s` of the noise, broadcastable with y.
        low: The lower end of the interval.
        high: The upper end.
    """

    std: Tensor

    def __init__(
        self,
        y: Tensor,
        A: Operator,
        std: float | Tensor,
        low: float = -math.inf,
        high: float = math.inf,
    ):
        super().__init__(y, A)
        self.register_buffer("std", parameter("std", std, self.y))
        if not low < high:
            raise ValueError(f"low must be less than high, got {low} and {high}")
        if bool((self.y < low).any()) or bool((self.y > high).any()):
            raise ValueError(f"y must lie from low = {low} to high = {high}")
        # rounded as y is, so that a reading at an end is one beside predictions of a wider type
        exact = self.y.dtype if self.y.is_floating_point() else torch.float64
        self.low, self.high = (float(torch.tensor(end, dtype=exact)) for end in (low, high))

    def log_density(self, y: Tensor, prediction: Tensor, variance: float) -> Tensor:
        """Returns the log-density of each reading, or the log-probability of one at an end."""
        root = torch.sqrt(self.std**2 + variance)
        low, high = y <= self.low, y >= self.high
        end = low | high
        # each is evaluated where it is read only, and puts no NaN into the gradient elsewhere
        inside = torch.where(end, 0.0, y - prediction) / root
        beyond = torch.where(low, self.low - prediction, prediction - self.high)
        beyond = torch.where(end, beyond, 0.0) / root
        density = -(inside**2) / 2 - torch.log(math.sqrt(2 * math.pi) * root)
        return torch.where(end, log_ndtr(beyond), density)
