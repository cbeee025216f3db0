"""Observing at places: single elements, points between those of a grid, and differences there."""

__all__ = ["Interpolate", "Select", "Vorticity"]

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Size, Tensor

from .._arguments import as_tensor, floating
from .sparse import SparseMap


class Select(SparseMap):
    """Observes single elements of a state, at irregular places.

    Arguments:
        event: The shape of a state.
        where: A boolean mask with the shape of a state; or the elements' places, integers with
            shape (M) in the flattened state or (M, dimensions) in the state. The observation has
            shape (M), in the order given, or of the mask.

    Raises:
        TypeError: `where` is neither boolean nor integer.
        ValueError: `where` has another shape, is empty, or a place lies beyond the state.
    """

    def __init__(self, event: Sequence[int], where: Tensor):
        event = Size(event)
        where = as_tensor("where", where)

        if where.dtype == torch.bool:
            if where.shape != event:
                raise ValueError(
                    f"where must be a mask of shape {tuple(event)}, but has {tuple(where.shape)}"
                )
            places = where.flatten().nonzero()[:, 0]
        elif where.is_floating_point() or where.is_complex():
            raise TypeError(f"where must be boolean or integer, but is {str(where.dtype)[6:]}")
        elif where.ndim == 2 and where.shape[1] == len(event):
            sizes = torch.tensor(event, device=where.device)
            if bool(((where < 0) | (where >= sizes)).any()):
                raise ValueError(f"where must lie in a state of shape {tuple(event)}, but does not")
            strides = [event[d + 1 :].numel() for d in range(len(event))]
            places = (where.long() * torch.tensor(strides, device=where.device)).sum(dim=1)
        elif where.ndim == 1:
            places = where.long()
        else:
            raise ValueError(
                f"where must have shape (M,) or (M, {len(event)}), but has {tuple(where.shape)}"
            )
        if len(places) == 0:
            raise ValueError("where must select an element, but selects none")

        rows = torch.arange(len(places), device=places.device)
        super().__init__(event, (len(places),), rows, places)


class Interpolate(SparseMap):
    """Observes fields between the points of their grid, by bilinear interpolation.

    Arguments:
        event: The shape of a state, (*, H, W), or (L, *, H, W) with times.
        points: The coordinates along the last two dimensions, in grid units, with shape (P, 2):
            (0, 0) is the first point of the grid, (H - 1, W - 1) the last.
        times: The times, in states, with shape (P): point p is observed at its own time, between
            two states by linear interpolation. Without times, all are observed in every state.
        periodic: Whether the grid goes on with its first point after its last.

    The observation has shape (*, P). The weights have the type of `points`.

    Raises:
        ValueError: A shape does not fit, or a point or time lies beyond the state.
    """

    def __init__(
        self,
        event: Sequence[int],
        points: Tensor,
        times: Tensor | None = None,
        periodic: bool = False,
    ):
        event = Size(event)
        points = floating(as_tensor("points", points))
        timed = times is not None

        if len(event) < 2 + timed:
            raise ValueError(
                f"event must have at least {2 + timed} dimensions, but is {tuple(event)}"
            )
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise ValueError(f"points must have shape (P, 2), but has {tuple(points.shape)}")

        axes = [
            _between("points[:, 0]", points[:, 0], event[-2], periodic),
            _between("points[:, 1]", points[:, 1], event[-1], periodic),
        ]
        if times is not None:
            times = as_tensor("times", times).to(points)
            if times.shape != points.shape[:1]:
                raise ValueError(
                    f"times must have shape ({len(points)},), but has {tuple(times.shape)}"
                )
            axes.insert(0, _between("times", times, event[0], False))

        # the fields between time and grid, each of which is observed alike
        lead = event[1:-2] if timed else event[:-2]
        fields = lead if timed else Size(())
        field = torch.arange(fields.numel(), device=points.device)[:, None]
        point = torch.arange(len(points), device=points.device)

        rows, columns, values = [], [], []
        for corner in product((0, 1), repeat=len(axes)):
            *of_time, (i, wi), (j, wj) = (
                axis[side] for axis, side in zip(axes, corner, strict=True)
            )
            value, column = wi * wj, (field * event[-2] + i) * event[-1] + j
            for state, weight in of_time:
                value, column = value * weight, column + state * event[1:].numel()
            seen = (value != 0).expand(column.shape)  # a corner of no weight is not read
            rows.append((field * len(points) + point)[seen])
            columns.append(column[seen])
            values.append(value.expand(column.shape)[seen])

        super().__init__(
            event,
            (*lead, len(points)),
            torch.cat(rows),
            torch.cat(columns),
            torch.cat(values),
            0 if timed else len(lead),
        )


def _between(
    name: str, x: Tensor, n: int, periodic: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns the places before and after coordinates, and their weights."""
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, but is not")
    if not periodic and not (float(x.min()) >= 0 and float(x.max()) <= n - 1):
        raise ValueError(
            f"{name} must be from 0 to {n - 1}, but is from {float(x.min())} to {float(x.max())}"
        )
    before = x.floor()
    after = x - before
    place = before.long()
    following = place + 1
    if periodic:
        return (place % n, 1 - after), (following % n, after)
    return (place, 1 - after), (following.clamp(max=n - 1), after)


class Vorticity(SparseMap):
    r"""Observes the vorticity of velocity fields on a periodic grid, by central differences.

    .. math:: \omega = \partial_x v - \partial_y u

    A sparse map of four entries a point: on a CPU about as fast as differences of rolled copies,
    on a GPU one kernel instead of one for each, and with an adjoint of the same cost that needs no
    graph.

    Arguments:
        event: The shape of a state, (*, 2, H, W): the components :math:`u` along :math:`x`, the
            dimension H, and :math:`v` along :math:`y`, the dimension W.
        spacing: The distance of neighbouring points, one number or one for each of the two
            dimensions; that of a square with sides of :math:`2 \pi` by default.

    The observation has shape (*, H, W). The weights are float64.

    Raises:
        ValueError: `event` is not that of velocity fields, or a spacing is not positive.
    """

    def __init__(self, event: Sequence[int], spacing: float | tuple[float, float] | None = None):
        event = Size(event)
        if len(event) < 3 or event[-3] != 2:
            raise ValueError(f"event must be (*, 2, H, W), but is {tuple(event)}")
        h, w = event[-2:]
        if spacing is None:
            spacing = (2 * math.pi / h, 2 * math.pi / w)
        dx, dy = spacing if isinstance(spacing, tuple) else (spacing, spacing)
        if not (dx > 0 and dy > 0):
            raise ValueError(f"spacing must be positive, but is {spacing}")

        place = torch.arange(h * w).reshape(h, w)
        u, v = place, place + h * w
        columns = (v.roll(-1, 0), v.roll(1, 0), u.roll(-1, 1), u.roll(1, 1))
        values = (0.5 / dx, -0.5 / dx, -0.5 / dy, 0.5 / dy)
        super().__init__(
            event,
            (*event[:-3], h, w),
            place.flatten().repeat(4),
            torch.cat([c.flatten() for c in columns]),
            torch.tensor(values, dtype=torch.float64).repeat_interleave(h * w),
            leading=len(event) - 3,
        )
