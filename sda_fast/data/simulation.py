"""Trajectories simulated in memory, and the windows drawn from them."""

__all__ = ["draw_windows", "simulate"]

import torch
from torch import Generator, Tensor

from ..systems import MarkovChain
from ..systems.flow import coarsen as coarsened


def simulate(
    chain: MarkovChain,
    trajectories: int,
    length: int,
    *,
    burn_in: int = 1024,
    coarsen: int = 1,
    generator: Generator | None = None,
) -> Tensor:
    """Simulates standardised trajectories, all at once.

    Arguments:
        chain: The system.
        trajectories: The number n of trajectories.
        length: The number L of states of each.
        burn_in: The number of transitions, before the first state, that forget the prior.
        coarsen: The factor by which fields are coarsened after they are simulated.
        generator: The source of randomness.

    Returns:
        The trajectories, with shape (n, L, *state).

    Raises:
        ValueError: There are to be no states, or states that are no fields are to be coarsened.
        RuntimeError: The simulation left the finite numbers.
    """
    x = chain.prior((trajectories,), generator=generator)
    x = chain.trajectory(x, burn_in, last=True, generator=generator)
    states: Tensor | None = None

    for i in range(length):
        x = chain.transition(x, generator=generator)
        shown = chain.visible(x)
        if coarsen > 1:
            if shown.ndim < 3:
                raise ValueError(f"coarsen must be 1 for states that are no fields, got {coarsen}")
            shown = coarsened(shown, coarsen)
        if states is None:
            states = shown.new_empty(length, *shown.shape)
        states[i] = shown

    if states is None:
        raise ValueError(f"length must be at least 1, got {length}")
    if not bool(torch.isfinite(states).all()):
        raise RuntimeError(
            f"the simulation of {type(chain).__name__} is not finite: choose a smaller dt or more "
            "integration steps"
        )

    return chain.preprocess(states).transpose(0, 1).contiguous()


def draw_windows(
    trajectories: Tensor, batch: int, window: int, *, generator: Generator | None = None
) -> Tensor:
    """Draws windows uniformly from trajectories.

    Arguments:
        trajectories: The trajectories, with shape (n, L, *state).
        batch: The number B of windows.
        window: The number w of states of a window, at most L.
        generator: The source of randomness.

    Returns:
        The windows, with shape (B, w, *state).
    """
    n, length = trajectories.shape[:2]
    if window > length:
        raise ValueError(f"window must be at most the trajectories' {length} states, got {window}")

    i = torch.randint(n, (batch, 1), generator=generator)
    j = torch.randint(length - window + 1, (batch, 1), generator=generator)

    return trajectories[i, j + torch.arange(window)]
