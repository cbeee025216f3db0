r"""The predictor-corrector sampler.

From noise :math:`x(1)` a predictor follows the probability flow through a time grid
:math:`1 = t_0 > ... > t_N = 0` by an exponential integrator (Rozet & Louppe, 2023, algorithm 4),

.. math:: x(t_n) = r \, x(t_{n-1}) + (\sigma(t_n) - r \sigma(t_{n-1})) \,
    \epsilon(x(t_{n-1}), t_{n-1}), \qquad r = \mu(t_n) / \mu(t_{n-1})

and after each of its steps a corrector takes C Langevin steps at the new time,

.. math:: x \gets x - \sigma(t_n) (\delta \epsilon + \sqrt{2 \delta} z), \qquad
    \delta = \tau / \operatorname{mean}(\epsilon^2)

The initial noise and every :math:`z` are counter-based, so that a sample is a function of the seed
and of its number alone.

:mod:`plan <sda_fast.sampler.plan>` decides what is to be done and where each part runs,
:mod:`estimate <sda_fast.sampler.estimate>` evaluates the noise estimate in pieces, and
:mod:`run <sda_fast.sampler.run>` takes the steps.
"""

__all__ = ["SamplingPlan", "explain", "sample"]

from .plan import SamplingPlan
from .run import explain, sample
