r"""Guidance: how observations enter, at inference only.

A guidance module estimates the noise of the posterior,

.. math:: \epsilon(x(t), t \mid y) = \epsilon_\phi(x(t), t)
    - \sigma(t) \nabla_{x(t)} \log p(y \mid x(t))

through the denoised state :math:`\hat x = (x(t) - \sigma(t) \epsilon_\phi) / \mu(t)`. It takes the
place of the network in a noise process whose event is the whole trajectory.
"""

__all__ = [
    "DPSGaussianScore",
    "GaussianScore",
    "Guidance",
    "Level",
    "LikelihoodScore",
    "MMPSGaussianScore",
    "Pieces",
    "Spectrum",
    "context_for",
    "in_pieces",
    "linearise",
]

from .base import Guidance, Level, Pieces, context_for, in_pieces, linearise
from .gaussian import DPSGaussianScore, GaussianScore
from .likelihood import LikelihoodScore
from .mmps import MMPSGaussianScore
from .spectrum import Spectrum
