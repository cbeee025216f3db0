r"""Observation operators: what an instrument sees of a state.

An observation is :math:`y = A(x) + \epsilon` with an operator :math:`A` from states (B, *event) to
observations (B, *shape). Guidance needs, beside :math:`A(x)`, the product of its Jacobian with a
cotangent,

.. math:: \nabla_x \, \langle A(x), \bar y \rangle = J(x)^\top \bar y

which a linear operator gives by its adjoint, without a graph, and a nonlinear one by automatic
differentiation. Where something was not observed, the observation is NaN.
"""

__all__ = [
    "ObservationOperator",
    "Subsample",
]

from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn

from . import ops


class ObservationOperator(nn.Module):
    """Maps states to observations: the base of the operators here.

    A subclass defines `_observe` and, if it is linear, `_adjoint`.

    Arguments:
        event: The shape of a state, without a batch.
        shape: The shape of an observation, without a batch.
        linear: Whether the operator is linear.
    """

    def __init__(self, event: Sequence[int], shape: Sequence[int], linear: bool):
        super().__init__()

        self.event = Size(event)
        self.shape = Size(shape)
        self.linear = linear

        for name, sizes in (("event", self.event), ("shape", self.shape)):
            if any(n < 1 for n in sizes):
                raise ValueError(f"{name} must have sizes of at least 1, but is {tuple(sizes)}")

    def extra_repr(self) -> str:
        return f"{tuple(self.event)} -> {tuple(self.shape)}"

    def _observe(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Maps states (B, *event) to observations (B, *shape)."""
        _check_batch("x", x, self.event)
        return self._observe(x)

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        r"""Returns :math:`J(x)^\top \bar y`, by the adjoint where the operator is linear.

        Arguments:
            x: The states, with shape (B, *event).
            cotangent: The cotangent :math:`\bar y` of the observations, with shape (B, *shape).

        Returns:
            The cotangent of the states, with shape (B, *event).

        Raises:
            ValueError: A shape does not fit, or the operator is not differentiable.
        """
        _check_batch("x", x, self.event)
        _check_batch("cotangent", cotangent, self.shape)
        if len(cotangent) != len(x):
            raise ValueError(
                f"cotangent must have a batch of {len(x)}, as x has, but has {len(cotangent)}"
            )
        return self._vjp(x, cotangent)

    def _vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        if self.linear:
            return self._adjoint(cotangent)

        twice = torch.is_grad_enabled() and (x.requires_grad or cotangent.requires_grad)
        with torch.enable_grad():
            x = x if twice and x.requires_grad else x.detach().requires_grad_()
            y = self._observe(x)
        if not y.requires_grad:
            raise ValueError("A must be differentiable, but A(x) does not depend on x for torch")

        return torch.autograd.grad(y, x, cotangent, create_graph=twice)[0]

    def __matmul__(self, inner: "ObservationOperator") -> "ObservationOperator":
        """Returns the composition, which observes what `inner` gives."""
        if not isinstance(inner, ObservationOperator):
            return NotImplemented
        return Composition(self, inner)

    def check(self, y: Tensor) -> Tensor:
        """Checks an observation, and returns it as a tensor.

        Arguments:
            y: The observation, with shape (*shape), or one for each sample, (B, *shape). It is NaN
                where nothing was observed.

        Raises:
            TypeError: y is not of floating point.
            ValueError: y has another shape, or is infinite.
        """
        y = torch.as_tensor(y)
        dims = len(self.shape)

        if not y.is_floating_point():
            raise TypeError(f"y must be of floating point, but is {str(y.dtype)[6:]}")
        if y.ndim not in (dims, dims + 1) or y.shape[y.ndim - dims :] != self.shape:
            raise ValueError(
                f"y must have the shape of an observation, {tuple(self.shape)}, or one for each "
                f"sample, (B, {', '.join(map(str, self.shape))}), but has {tuple(y.shape)}"
            )
        infinite = y.isinf()
        if bool(infinite.any()):
            raise ValueError(
                f"y must be finite, or NaN where nothing was observed, but is infinite in "
                f"{int(infinite.sum())} of {y.numel()} elements, the first at index "
                f"{tuple(infinite.nonzero()[0].tolist())}"
            )
        return y

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns the matrix of a linear operator, with a row an observed number and a column an
        element of the state. It is dense: for tests, and for the algebra of small states.

        Raises:
            ValueError: The operator is not linear.
        """
        if not self.linear:
            raise ValueError("the operator must be linear to have a matrix, but is not")

        device = next((b.device for b in self.buffers()), None)
        identity = torch.eye(self.event.numel(), dtype=dtype, device=device)
        return self(identity.unflatten(1, self.event)).flatten(1).mT


def _check_batch(name: str, x: Tensor, shape: Size) -> None:
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        raise ValueError(
            f"{name} must have shape (B, {', '.join(map(str, shape))}), but has {tuple(x.shape)}"
        )


class Composition(ObservationOperator):
    """Observes what another operator gives: `outer @ inner`."""

    def __init__(self, outer: ObservationOperator, inner: ObservationOperator):
        if outer.event != inner.shape:
            raise ValueError(
                f"outer must take what inner gives, of shape {tuple(inner.shape)}, but takes "
                f"{tuple(outer.event)}"
            )
        super().__init__(inner.event, outer.shape, outer.linear and inner.linear)
        self.outer = outer
        self.inner = inner

    def _observe(self, x: Tensor) -> Tensor:
        return self.outer._observe(self.inner._observe(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.inner._adjoint(self.outer._adjoint(y))

    def _vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        if self.outer.linear:  # which does not look at what it is given
            return self.inner._vjp(x, self.outer._adjoint(cotangent))
        return self.inner._vjp(x, self.outer._vjp(self.inner._observe(x), cotangent))


class Subsample(ObservationOperator):
    """Observes every so many states, components or points of a grid.

    Arguments:
        event: The shape of a state, for instance (L, C, H, W).
        slices: The slices of the leading dimensions of a state, time first; the others are
            observed whole.

    Raises:
        TypeError: A slice is none.
        ValueError: There are more slices than dimensions, one has a step below 1, or one is empty.

    Example:
        >>> A = Subsample((65, 3), slice(None, None, 8), slice(0, 1))
        >>> A(torch.randn(4, 65, 3)).shape
        torch.Size([4, 9, 1])
    """

    def __init__(self, event: Sequence[int], *slices: slice):
        if len(slices) > len(event):
            raise ValueError(
                f"slices must be at most {len(event)}, one a dimension of {tuple(event)}, but are "
                f"{len(slices)}"
            )

        starts, steps, sizes = [], [], []
        for d, n in enumerate(event):
            s = slices[d] if d < len(slices) else slice(None)
            if not isinstance(s, slice):
                raise TypeError(f"slices[{d}] must be a slice, but is {s!r}")
            if s.step is not None and s.step < 1:
                raise ValueError(f"slices[{d}] must have a step of at least 1, but is {s}")
            places = range(n)[s]
            if len(places) == 0:
                raise ValueError(f"slices[{d}] must hold some of {n} places, but is {s}")
            starts.append(places.start)
            steps.append(places.step)
            sizes.append(len(places))

        super().__init__(event, sizes, linear=True)
        self._places = (starts, steps)

    def _observe(self, x: Tensor) -> Tensor:
        return ops.subsample(x, *self._places, self.shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        return ops.subsample_adjoint(y, *self._places, self.event)
