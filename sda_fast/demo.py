"""The demonstration: a chaotic trajectory of Lorenz-63, recovered from a few noisy observations."""

__all__ = ["demo"]

import io
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Generator

from .evaluation.metrics import coverage, log_prior, rmse
from .guidance import GaussianScore
from .io import atomic_write, load_prior
from .plotting import import_matplotlib, plot_posterior
from .presets import preset
from .sampler import explain, sample
from .schedule import VPSDE
from .systems import NoisyLorenz63

# The low-frequency setting of the paper: every 8th state's first coordinate.
LENGTH, EVERY, STD, GAMMA = 65, 8, 0.05, 3e-2


def demo(
    out: str | os.PathLike[str] = ".",
    *,
    members: int = 64,
    seed: int = 0,
    backend: str = "auto",
    progress: bool = True,
) -> str:
    """Simulates a truth, observes it, draws posterior trajectories and compares.

    Arguments:
        out: The directory for `demo.png` and `demo.npz`.
        members: The number of posterior trajectories.
        seed: The seed of the truth, of the observation noise and of the sampler.
        backend: The backend of :func:`sda_fast.sample`.
        progress: Whether to show a progress bar.

    Returns:
        A short table of results.

    Raises:
        ValueError: There are no members, or the seed is out of its range.
        FileNotFoundError: There is no such directory.
        ImportError: matplotlib is missing.
    """
    if members < 1:
        raise ValueError(f"members must be at least 1, got {members}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be between 0 and 2^63 - 1, got {seed}")
    out = Path(out)
    if not out.is_dir():
        raise FileNotFoundError(f"no directory {str(out)!r} to write into")

    import_matplotlib()  # or else nothing of what follows would be shown

    chain = NoisyLorenz63(dt=0.025)
    generator = Generator().manual_seed(seed)
    x = chain.trajectory(chain.prior(generator=generator), 1024, last=True, generator=generator)
    x = chain.preprocess(chain.trajectory(x, LENGTH, generator=generator))
    noise = torch.randn(x[::EVERY, :1].shape, generator=generator)
    y = x[::EVERY, :1] + STD * noise

    # far fewer evaluations than the paper's 256 steps of 16 corrections
    recipe = preset("fast", last=0.003)
    prior = load_prior("lorenz63-w13", length=LENGTH, composition=recipe.composition)
    guided = GaussianScore(y, lambda x: x[..., ::EVERY, :1], STD, prior, gamma=GAMMA)
    posterior = VPSDE(guided, prior.shape)

    began = time.perf_counter()
    ensemble = sample(
        posterior,
        (members,),
        seed=seed,
        backend=backend,
        progress=progress,
        **recipe.options,
    )
    seconds = time.perf_counter() - began
    plan = explain(posterior, (members,), backend=backend, **recipe.options)

    truth, ensemble = chain.postprocess(x), chain.postprocess(ensemble)
    observed = chain.postprocess(torch.cat((y, torch.zeros(len(y), 2)), dim=-1))[:, 0]
    clock = chain.dt * torch.arange(LENGTH)
    climatology = chain.postprocess(torch.zeros_like(x))

    plot_posterior(
        out / "demo.png",
        clock,
        truth,
        ensemble,
        {0: (clock[::EVERY], observed)},
        ("a", "b", "c"),
        title=f"Lorenz-63: {members} posterior trajectories from {len(y)} observations",
    )
    arrays = io.BytesIO()
    np.savez(
        arrays,
        time=clock.numpy(),
        truth=truth.numpy(),
        observation=observed.numpy(),
        observation_time=clock[::EVERY].numpy(),
        posterior=ensemble.numpy(),
    )
    atomic_write(out / "demo.npz", arrays.getvalue())

    rows = (
        ("RMSE of the posterior mean", f"{rmse(ensemble.mean(dim=0), truth):.2f}"),
        ("RMSE of climatology", f"{rmse(climatology, truth):.2f}"),
        ("truth within the 90 % band", f"{coverage(ensemble, truth):.0%}"),
        ("log prior per transition", f"{float(log_prior(chain, ensemble).mean()):.2f}"),
        ("the truth's", f"{float(log_prior(chain, truth)):.2f}"),
        ("score evaluations", f"{plan.evaluations} of {members} trajectories"),
        ("time", f"{seconds:.1f} s"),
        ("written", f"{out / 'demo.png'}, {out / 'demo.npz'}"),
    )
    width = max(len(name) for name, _ in rows)

    return "\n".join([*(f"{name:{width}}  {value}" for name, value in rows), "", str(plan)])
