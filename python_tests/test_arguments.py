"""What is given as arguments: arrays of NumPy of which some elements are masked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sda_fast import (
    VPSDE,
    DPSGaussianScore,
    GaussianScore,
    LikelihoodScore,
    MCScoreNet,
    MMPSGaussianScore,
    likelihood,
    sample,
)
from sda_fast.observation import Interpolate, Select, Subsample

SHAPE = (5, 3)
PRIOR = VPSDE(MCScoreNet(3, order=1, hidden_features=[16]).requires_grad_(False), SHAPE)
GUIDES: dict[str, Callable[[Any], Any]] = {
    "gaussian": lambda y: GaussianScore(y, first, 0.1, PRIOR),
    "dps": lambda y: DPSGaussianScore(y, first, PRIOR),
    "mmps": lambda y: MMPSGaussianScore(y, first, 0.1, PRIOR),
    **{
        name: lambda y, law=law: LikelihoodScore(law(y, first, 0.1), PRIOR)
        for name, law in (
            ("of a Gaussian", likelihood.Gaussian),
            ("of Student's t", likelihood.StudentT),
            ("of Huber", likelihood.Huber),
            ("of a log-normal", likelihood.LogNormal),
        )
    },
    "of counts": lambda y: LikelihoodScore(likelihood.Poisson(y, first), PRIOR),
    "censored": lambda y: LikelihoodScore(
        likelihood.Censored(y, first, 0.1, low=0.0, high=4.0), PRIOR
    ),
}


def first(x: Tensor) -> Tensor:
    return x[:, ::2, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("guide", GUIDES)
def test_a_masked_observation_is_not_observed(guide: str, dtype: type):
    y = np.ma.array([1, 999, 3], mask=[False, True, False], dtype=dtype)
    made, expected = (GUIDES[guide](each) for each in (y, torch.tensor([1.0, torch.nan, 3.0])))
    x, t = torch.randn(2, *SHAPE), torch.tensor(0.5)
    torch.testing.assert_close(made(x, t), expected(x, t))

    whole = np.ma.array([1.0, 2.0, 3.0], mask=False)
    assert torch.equal(GUIDES[guide](whole)(x, t), GUIDES[guide](np.asarray(whole))(x, t))


def test_check_of_a_masked_observation():
    A = Subsample(SHAPE, slice(None, None, 2), slice(0, 1))
    y = np.ma.masked_greater(np.array([[1.0], [999.0], [3.0]], np.float32), 100.0)
    assert A.check(y).isnan().flatten().tolist() == [False, True, False]


MASKED = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("std", lambda: GaussianScore(torch.zeros(3), first, MASKED, PRIOR)),
        ("gamma", lambda: GaussianScore(torch.zeros(3), first, 0.1, PRIOR, gamma=MASKED)),
        ("std", lambda: MMPSGaussianScore(torch.zeros(3), first, MASKED, PRIOR)),
        ("scale", lambda: likelihood.Huber(torch.zeros(3), first, MASKED)),
        ("where", lambda: Select(SHAPE, MASKED.astype(int))),
        ("points", lambda: Interpolate(SHAPE, MASKED[:2, None].repeat(2, 1))),
        ("steps", lambda: sample(PRIOR, steps=MASKED[::-1])),
    ],
)
def test_nothing_else_may_be_masked(name: str, call: Callable[[], object]):
    with pytest.raises(ValueError, match=f"{name} must have no masked elements, .* at index"):
        call()
