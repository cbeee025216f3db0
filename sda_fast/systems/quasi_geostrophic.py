"""Two-layer quasi-geostrophic turbulence, the ocean's and the atmosphere's simplest eddies."""

__all__ = ["QuasiGeostrophic"]

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from .._arguments import floating
from .jax_solver import Solver, import_solver, random_keys
from .markov import MarkovChain


def _import() -> tuple[Any, Any]:
    return import_solver("QuasiGeostrophic", "pyqg_jax", "pyqg-jax", "quasigeostrophic")


@lru_cache(maxsize=8)
def _solver(dt: float, steps: int, **parameters: Any) -> Solver:
    """Builds a solver, which systems of the same parameters share."""
    jax, pyqg = _import()
    model = pyqg.qg_model.QGModel(**parameters, precision=pyqg.state.Precision.DOUBLE)
    rest = pyqg.state.PseudoSpectralState(
        qh=jax.numpy.zeros(model.get_grid().spectral_state_shape, complex),
        _q_shape=model.get_grid().real_state_shape[-2:],
    )
    h = dt / steps

    def f(qh: Any) -> Any:
        return model.get_updates(rest.update(qh=qh)).qh

    def step(_: Any, qh: Any) -> Any:
        """One Runge-Kutta step of fourth order, and the model's filter of the smallest scales."""
        k1 = f(qh)
        k2 = f(qh + h / 2 * k1)
        k3 = f(qh + h / 2 * k2)
        k4 = f(qh + h * k3)
        qh = qh + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return model.postprocess_state(rest.update(qh=qh)).qh

    def prior(key: Any) -> Any:
        return model.create_initial_state(jax.random.wrap_key_data(key, impl="threefry2x32")).q

    def transition(q: Any) -> Any:
        return rest.update(qh=jax.lax.fori_loop(0, steps, step, rest.update(q=q).qh)).q

    return Solver(jax.jit(prior), jax.jit(transition))


class QuasiGeostrophic(MarkovChain):
    r"""The two-layer quasi-geostrophic equations on a doubly periodic beta plane (Phillips' model).

    .. math::
        \partial_t q_1 + J(\psi_1, q_1) + U \partial_x q_1 +
            (\beta + F_1 U) \partial_x \psi_1 & = D \\
        \partial_t q_2 + J(\psi_2, q_2) + (\beta - F_2 U) \partial_x \psi_2 & =
            - r \nabla^2 \psi_2 + D

    with :math:`q_1 = \nabla^2 \psi_1 + F_1 (\psi_2 - \psi_1)`,
    :math:`q_2 = \nabla^2 \psi_2 + F_2 (\psi_1 - \psi_2)`,
    :math:`F_1 = 1 / (r_d^2 (1 + \delta))`, :math:`F_2 = \delta F_1`, and D a filter of the smallest
    scales. States are the anomalies (2, N, N) of potential vorticity in 1/s, the upper layer's
    first, y before x. They are solved one by one and in float64, by the pseudo-spectral model of
    pyqg-jax and Runge-Kutta steps of fourth order, which need no states before the last (the
    model's own Adams-Bashforth steps do, and would make no Markov chain).

    The defaults are that model's, of mid-latitude ocean eddies. From :meth:`prior`, weak noise,
    it takes the eddies some years to fill the square.

    It needs the extra `quasigeostrophic`: pyqg-jax, and a jax older than 0.6.

    References:
        | Energy Transformations and Meridional Circulations Associated with Simple Baroclinic Waves
        | in a Two-level, Quasi-geostrophic Model (Phillips, 1954)
        | https://doi.org/10.1111/j.2153-3490.1954.tb01123.x
        | pyqg-jax, https://pyqg-jax.readthedocs.io

    Arguments:
        size: The number N of grid points along each axis, even.
        dt: The time between two states, in seconds.
        steps: The number of integration steps between two states.
        width: The side of the square, in metres.
        beta: The gradient of the Coriolis parameter, in 1 / (m s).
        radius: The deformation radius :math:`r_d`, in metres.
        delta: The ratio of the layers' depths, upper to lower.
        U: The velocity of the upper layer's mean flow, in m/s. The lower layer's is zero.
        drag: The rate r of the bottom drag, in 1/s.

    Raises:
        ImportError: pyqg-jax is missing, or jax is too new.
    """

    def __init__(
        self,
        size: int = 64,
        dt: float = 86400.0,
        steps: int = 12,
        width: float = 1e6,
        beta: float = 1.5e-11,
        radius: float = 15e3,
        delta: float = 0.25,
        U: float = 0.025,
        drag: float = 5.787e-7,
    ):
        if size < 8 or size % 2:
            raise ValueError(f"size must be even and at least 8, got {size}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        for name, value in (("dt", dt), ("width", width), ("radius", radius), ("delta", delta)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

        self.size, self.dt, self.steps = size, dt, steps
        self.parameters = {
            "nx": size,
            "L": float(width),
            "beta": float(beta),
            "rd": float(radius),
            "delta": float(delta),
            "U1": float(U),
            "rek": float(drag),
        }
        _import()  # fails here rather than in the first state

    def _solve(self, name: str, inputs: np.ndarray, shape: Sequence[int]) -> Tensor:
        """Calls a function of the solver on each input and stacks the states, (*shape, 2, N, N)."""
        from jax.experimental import enable_x64

        states = np.empty((len(inputs), 2, self.size, self.size))
        with enable_x64():  # what the model asks for
            function = getattr(_solver(float(self.dt), self.steps, **self.parameters), name)
            for state, value in zip(states, inputs, strict=True):
                state[:] = function(value)

        return torch.from_numpy(states).reshape(*shape, 2, self.size, self.size)

    def prior(self, shape: Sequence[int] = (), *, generator: Generator | None = None) -> Tensor:
        """Draws weak noise in the upper layer, with shape (*shape, 2, N, N)."""
        return self._solve("prior", random_keys(shape, generator), shape).float()

    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Integrates states (*, 2, N, N) over a time `dt`, in float64; they keep their type.

        Raises:
            ValueError: The shape of x is another.
        """
        if x.shape[-3:] != (2, self.size, self.size):
            raise ValueError(
                f"x must have shape (*, 2, {self.size}, {self.size}), got {tuple(x.shape)}"
            )

        states = x.detach().to("cpu", torch.float64).reshape(-1, 2, self.size, self.size).numpy()
        return self._solve("transition", states, x.shape[:-3]).to(floating(x))
