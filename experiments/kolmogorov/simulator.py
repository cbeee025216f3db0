"""The flow of the paper's data, simulated on a fine grid and seen on the coarse one of a prior."""

__all__ = ["Simulator"]

import os

import torch
from torch import Generator, Tensor

from sda_fast import KolmogorovFlow
from sda_fast.systems import flow


class Simulator:
    """Kolmogorov flow, seen as means over blocks.

    Arguments:
        seen: The number of points along each axis of the grid that states are seen on.
        size: That of the grid which they are simulated on.
        dt: The time between two states.
    """

    def __init__(self, seen: int, size: int = 256, dt: float = 0.2):
        if size % seen:
            raise ValueError(f"size must be a multiple of the {seen} points seen, but is {size}")
        # as `sda_fast simulate` does: one state at a time is what these are best for
        os.environ.setdefault(
            "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false --xla_cpu_use_thunk_runtime=false"
        )
        self.chain = KolmogorovFlow(size, dt)
        self.ratio = size // seen
        self.dt = dt

    def truth(self, length: int, seed: int, burn_in: int = 64) -> Tensor:
        """Simulates a trajectory that no prior was trained on, with shape (L, 2, n, n)."""
        generator = Generator().manual_seed(seed)
        x = self.chain.prior(generator=generator)
        x = self.chain.trajectory(x, burn_in, last=True)
        return torch.stack(
            [flow.coarsen(x := self.chain.transition(x), self.ratio) for _ in range(length)]
        )

    def advance(self, x: Tensor) -> Tensor:
        """Moves coarse states (*, 2, n, n) on by one interval: to the fine grid, by the
        simulator, and back."""
        fine = flow.upsample(x, self.ratio, "bicubic")
        return flow.coarsen(self.chain.transition(fine), self.ratio)

    def inconsistency(self, x: Tensor) -> float:
        """Returns the root-mean-square difference between what follows the states of
        trajectories (*, L, 2, n, n) in the simulator and what follows them there.

        The truth's own is above zero, since the coarse grid does not show all of a state.
        """
        return float(
            (self.advance(x[..., :-1, :, :, :]) - x[..., 1:, :, :, :]).square().mean().sqrt()
        )
