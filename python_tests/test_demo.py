"""The demonstration: the posterior is good, and what is written can be read."""

import numpy as np
import pytest
import torch

from experiments.lorenz import cases
from sda_fast.demo import demo
from sda_fast.evaluation import Observation


@pytest.mark.slow
def test_demo(tmp_path):
    table = demo(tmp_path, members=32, progress=False)

    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "demo.npz") as arrays:
        truth, posterior = arrays["truth"], arrays["posterior"]
        observation = arrays["observation"]

    assert posterior.shape == (32, *truth.shape)
    assert np.isfinite(posterior).all()

    # observed to 0.05 standard deviations of 8, so within 0.4 on average
    error = np.abs(posterior[:, ::8, 0] - observation).mean()
    assert error < 0.8

    rmse = np.sqrt(((posterior.mean(axis=0) - truth) ** 2).mean())
    climatology = np.sqrt(((np.array([0, 0, 25]) - truth) ** 2).mean())
    assert rmse < 0.25 * climatology

    # the band is as wide as that of a particle filter of the same observations: narrower at the
    # observations than midway between them, by 0.68
    chain = cases.chain
    y = torch.full((65, 1), np.nan)
    y[::8, 0] = torch.from_numpy(observation / 8)
    seen = Observation(y, lambda x: chain.preprocess(x)[..., :1], torch.tensor([0.05]))
    exact = cases.filtered(seen, 1, 0, 1024)[:, :, 0].std(dim=0).numpy()
    spread = posterior[:, :, 0].std(axis=0)
    assert spread[::8].mean() < 0.75 * spread[4::8].mean()
    assert 0.75 < (spread / exact).mean() < 1.25

    for row in ("RMSE", "90 % band", "log prior", "score evaluations", "time"):
        assert row in table


def test_demo_needs_its_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        demo(tmp_path / "nowhere")
