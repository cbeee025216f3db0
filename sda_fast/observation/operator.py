"""What an observation operator is, and operators made of others."""

__all__ = ["Composition", "ObservationOperator", "Stack"]

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Size, Tensor, nn

from .._arguments import as_observation
from .._calls import hooked, stands_for_call


class ObservationOperator(nn.Module):
    """Maps states to observations: the base of the operators here.

    A subclass defines `_observe` and, if it is linear, `_adjoint`. What tells it from others of its
    class it keeps in public attributes and buffers, by which checkpoints of a sample know it.

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

    @property
    def _plain(self) -> bool:
        """Whether calls of it, or of its parts, are what their classes say."""
        return stands_for_call(self, "vjp")

    @property
    def _observes_again(self) -> bool:
        """Whether `vjp` is by automatic differentiation, which observes the states once more."""
        bare = type(self).vjp is ObservationOperator.vjp
        return bare and type(self)._vjp is ObservationOperator._vjp and not self.linear

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
            The cotangent of the states, with shape (B, *event) and their type.

        Raises:
            ValueError: A shape does not fit, or the operator is not differentiable.
        """
        _check_batch("x", x, self.event)
        _check_batch("cotangent", cotangent, self.shape)
        if len(cotangent) != len(x):
            raise ValueError(
                f"cotangent must have a batch of {len(x)}, as x has, but has {len(cotangent)}"
            )
        gradient = self._vjp(x, cotangent)
        return gradient.to(x.dtype) if x.is_floating_point() else gradient

    def _vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        return self._adjoint(cotangent) if self.linear else self._differentiate(x, cotangent)

    def _differentiate(self, x: Tensor, cotangent: Tensor) -> Tensor:
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
        return Composition(*self._chain(), *inner._chain())

    def _chain(self) -> list["ObservationOperator"]:
        """Returns what the operator is the composition of, so that a long one is no deep one."""
        return [self]

    def check(self, y: Tensor) -> Tensor:
        """Checks an observation, and returns it as a tensor.

        Arguments:
            y: The observation, with shape (*shape), or one for each sample, (B, *shape). It is NaN
                where nothing was observed, or masked, as an array of NumPy.

        Raises:
            TypeError: y is not of floating point.
            ValueError: y has another shape, or is infinite.
        """
        y = as_observation(y)
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


class _OfOthers(ObservationOperator):
    """An operator made of others."""

    operators: nn.ModuleList

    def _each(self) -> list[ObservationOperator]:
        return cast(list[ObservationOperator], list(self.operators))

    @property
    def _plain(self) -> bool:
        return super()._plain and all(A._plain for A in self._each())

    @property
    def _observes_again(self) -> bool:
        return not self._plain or any(A._observes_again for A in self._each())


class Composition(_OfOthers):
    """Observes what another operator gives: `outer @ inner`.

    Arguments:
        operators: The operators, each of which observes what the next one gives.

    Raises:
        ValueError: There is no operator, or one does not take what the next one gives.
    """

    def __init__(self, *operators: ObservationOperator):
        if not operators:
            raise ValueError("operators must be at least one, but there is none")
        for outer, inner in pairwise(operators):
            if outer.event != inner.shape:
                raise ValueError(
                    f"outer must take what inner gives, of shape {tuple(inner.shape)}, but takes "
                    f"{tuple(outer.event)}"
                )
        linear = all(A.linear for A in operators)
        super().__init__(operators[-1].event, operators[0].shape, linear)
        self.operators = nn.ModuleList(operators)

    def _chain(self) -> list[ObservationOperator]:
        return self._each() if type(self) is Composition and not hooked(self) else [self]

    def _observe(self, x: Tensor) -> Tensor:
        for A in reversed(self._each()):
            x = A(x)
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        for A in self._each():
            y = A._adjoint(y)
        return y

    def _vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        if not self._plain:
            return self._differentiate(x, cotangent)
        each = self._each()
        while each and each[0].linear:  # which does not look at what it is given
            cotangent = each.pop(0)._adjoint(cotangent)
        given = [x]
        for A in reversed(each[1:]):
            given.append(A(given[-1]))
        for A in each:
            cotangent = A._vjp(given.pop(), cotangent)
        return cotangent


class Stack(_OfOthers):
    """Observes by several instruments: their observations, flattened, one after the other.

    Arguments:
        operators: The operators, all of the same event.

    Raises:
        ValueError: There is no operator, or their events differ.
    """

    def __init__(self, *operators: ObservationOperator):
        if not operators:
            raise ValueError("operators must be at least one, but there is none")
        event = operators[0].event
        for i, operator in enumerate(operators):
            if operator.event != event:
                raise ValueError(
                    f"operators[{i}] must observe states of shape {tuple(event)}, as the first "
                    f"does, but observes {tuple(operator.event)}"
                )

        self._sizes = [A.shape.numel() for A in operators]
        super().__init__(event, (sum(self._sizes),), all(A.linear for A in operators))
        self.operators = nn.ModuleList(operators)

    def _observe(self, x: Tensor) -> Tensor:
        return torch.cat([A(x).flatten(1) for A in self._each()], dim=1)

    def _vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        if not self._plain:
            return self._differentiate(x, cotangent)
        parts = zip(self._each(), cotangent.split(self._sizes, dim=1), strict=True)
        return torch.stack([A._vjp(x, y.reshape(-1, *A.shape)) for A, y in parts]).sum(dim=0)

    def _adjoint(self, y: Tensor) -> Tensor:
        parts = zip(self._each(), y.split(self._sizes, dim=1), strict=True)
        return torch.stack([A._adjoint(y.reshape(-1, *A.shape)) for A, y in parts]).sum(dim=0)
