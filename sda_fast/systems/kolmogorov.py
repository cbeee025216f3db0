"""Two-dimensional turbulence under Kolmogorov's forcing, the paper's largest test bed."""

__all__ = ["KolmogorovFlow"]

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from . import flow
from .jax_solver import Solver, import_solver, random_keys
from .markov import MarkovChain

MAX_VELOCITY = 5.0  # for which the integration step is stable


def _import() -> tuple[Any, Any]:
    return import_solver("KolmogorovFlow", "jax_cfd.base", "jax-cfd", "kolmogorov")


@lru_cache(maxsize=8)
def _solver(size: int, dt: float, reynolds: float) -> Solver:
    """Builds a solver, which flows of the same parameters share."""
    jax, cfd = _import()

    grid = cfd.grids.Grid((size, size), domain=((0, 2 * math.pi), (0, 2 * math.pi)))
    periodic = cfd.boundaries.periodic_boundary_conditions(2)
    viscosity = 1 / reynolds

    forcing = cfd.forcings.simple_turbulence_forcing(
        grid,
        constant_magnitude=1.0,
        constant_wavenumber=4.0,
        linear_coefficient=-0.1,
        forcing_type="kolmogorov",
    )
    stable = cfd.equations.stable_time_step(
        max_velocity=MAX_VELOCITY, max_courant_number=0.5, viscosity=viscosity, grid=grid
    )
    steps = max(1, math.ceil(dt / stable))
    step = cfd.equations.semi_implicit_navier_stokes(
        density=1.0, viscosity=viscosity, dt=dt / steps, grid=grid, forcing=forcing
    )
    integrate = cfd.funcutils.repeated(step, steps)

    def stack(velocity: Any) -> Any:
        return jax.numpy.stack([component.data for component in velocity])

    def prior(key: Any) -> Any:
        velocity = cfd.initial_conditions.filtered_velocity_field(
            jax.random.wrap_key_data(key, impl="threefry2x32"),
            grid,
            maximum_velocity=3.0,
            peak_wavenumber=4.0,
        )
        return stack(velocity)

    def transition(x: Any) -> Any:
        with warnings.catch_warnings():  # while it is traced
            warnings.filterwarnings("ignore", "jax.tree_map is deprecated", DeprecationWarning)
            velocity = cfd.initial_conditions.wrap_variables((x[0], x[1]), grid, (periodic,) * 2)
            return stack(integrate(velocity))

    return Solver(jax.jit(prior), jax.jit(transition))


class KolmogorovFlow(MarkovChain):
    r"""The incompressible Navier-Stokes equations in two dimensions, with Kolmogorov's forcing.

    .. math::
        \dot{\mathbf u} & = - (\mathbf u \cdot \nabla) \mathbf u - \nabla p +
            \frac{1}{Re} \nabla^2 \mathbf u - \frac{1}{10} \mathbf u + \sin(4 y) \, \mathbf e_x \\
        0 & = \nabla \cdot \mathbf u

    on the doubly periodic square of side :math:`2 \pi`, solved by finite volumes on a staggered
    grid. States are velocities (2, N, N) in float32, the component along x first, x before y. They
    are simulated one by one on the CPU or where else jax computes, so that a state does not depend
    on those beside it.

    It needs the extra `kolmogorov`: jax-cfd, and a jax older than 0.6.

    References:
        | Machine learning-accelerated computational fluid dynamics (Kochkov et al., 2021)
        | https://doi.org/10.1073/pnas.2101784118
        | Score-based Data Assimilation (Rozet & Louppe, 2023), section 4.2
        | https://arxiv.org/abs/2306.10574

    Arguments:
        size: The number N of grid points along each axis.
        dt: The time between two states, of which the solver makes as many steps as stability
            needs.
        reynolds: The Reynolds number Re, of velocities and lengths of order one.

    Raises:
        ImportError: jax-cfd is missing, or jax is too new for it.
    """

    def __init__(self, size: int = 256, dt: float = 0.01, reynolds: float = 1e3):
        if size < 8:
            raise ValueError(f"size must be at least 8, the forcing's resolution, got {size}")
        if not dt > 0:
            raise ValueError(f"dt must be positive, got {dt}")
        if not reynolds > 0:
            raise ValueError(f"reynolds must be positive, got {reynolds}")

        self.size, self.dt, self.reynolds = size, dt, reynolds
        _import()  # fails here rather than in the first state

    def _solve(self, name: str, inputs: np.ndarray, shape: Sequence[int]) -> Tensor:
        """Calls a function of the solver on each input and stacks the states, (*shape, 2, N, N)."""
        from jax.experimental import disable_x64

        states = np.empty((len(inputs), 2, self.size, self.size), np.float32)
        with disable_x64():  # the same numbers whatever else uses jax
            function = getattr(_solver(self.size, float(self.dt), float(self.reynolds)), name)
            for state, value in zip(states, inputs, strict=True):
                state[:] = function(value)

        return torch.from_numpy(states).reshape(*shape, 2, self.size, self.size)

    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws smooth, divergence-free random velocities of greatest speed 3 and wavenumbers
        about 4, with shape (*shape, 2, N, N)."""
        return self._solve("prior", random_keys(shape, generator), shape)

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Integrates states (*, 2, N, N) over a time `dt`. They are computed in float32.

        Raises:
            ValueError: The shape of x is another.
        """
        if x.shape[-3:] != (2, self.size, self.size):
            raise ValueError(
                f"x must have shape (*, 2, {self.size}, {self.size}), got {tuple(x.shape)}"
            )

        states = x.detach().to("cpu", torch.float32).reshape(-1, 2, self.size, self.size).numpy()
        return self._solve("transition", states, x.shape[:-3]).to(x.device)

    @staticmethod
    def coarsen(x: Tensor, r: int = 2) -> Tensor:
        """Averages fields over blocks of points: :func:`sda_fast.systems.flow.coarsen`."""
        return flow.coarsen(x, r)

    @staticmethod
    def upsample(x: Tensor, r: int = 2, mode: str = "bilinear") -> Tensor:
        """Interpolates fields: :func:`sda_fast.systems.flow.upsample`."""
        return flow.upsample(x, r, mode)

    @staticmethod
    def vorticity(x: Tensor) -> Tensor:
        r"""Returns :math:`\partial_y u - \partial_x v` of velocities (*, 2, H, W), with shape
        (*, H, W).

        As in the reference package, derivatives are per grid point: it is minus
        :func:`sda_fast.systems.flow.vorticity` times the spacing.
        """
        u, v = flow._velocity(x)
        du = (u.roll(-1, dims=-1) - u.roll(1, dims=-1)) / 2
        dv = (v.roll(-1, dims=-2) - v.roll(1, dims=-2)) / 2
        return du - dv
