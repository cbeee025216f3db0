"""Figures. They need matplotlib, which comes with the extra `plot`."""

__all__ = ["import_matplotlib", "plot_posterior"]

import io
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from .io import atomic_write


def import_matplotlib() -> Any:
    """Returns the module of figures.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        return import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: pip install 'sda-fast[plot]', or pip install matplotlib"
        ) from error


def plot_posterior(
    path: str | os.PathLike[str],
    time: Tensor,
    truth: Tensor,
    ensemble: Tensor,
    observations: dict[int, tuple[Tensor, Tensor]],
    names: Sequence[str],
    *,
    members: int = 5,
    level: float = 0.9,
    title: str = "",
) -> None:
    """Draws a posterior ensemble of trajectories, one panel for each coordinate.

    Arguments:
        path: The image to write.
        time: The time of each state, with shape (L).
        truth: The truth, with shape (L, D).
        ensemble: The members, with shape (N, L, D).
        observations: For an observed coordinate, the times and values, each with shape (M).
        names: The names of the coordinates.
        members: The number of members that are drawn.
        level: The share of the members that the band holds.
        title: The title.

    Raises:
        ImportError: matplotlib is missing.
        OSError: The image could not be written. What was there before is kept.
    """
    Figure = import_matplotlib().Figure
    blue, orange = "#3b6ea8", "#d1622b"
    figure = Figure(figsize=(9, 2.1 * len(names) + 0.6), dpi=140, layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]

    edges = ensemble.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = ensemble.quantile(edges, dim=0)

    for i, (panel, name) in enumerate(zip(panels, names, strict=True)):
        band = panel.fill_between(time, low[:, i], high[:, i], color=blue, alpha=0.25, lw=0)
        for member in ensemble[:members, :, i]:
            (line,) = panel.plot(time, member, color=blue, lw=0.7, alpha=0.8)
        (true,) = panel.plot(time, truth[:, i], color="black", lw=1.5)
        handles = {"truth": true, f"{level:.0%} of the posterior": band, "members": line}

        if i in observations:
            points = panel.plot(*observations[i], "o", color=orange, ms=5, mec="white", mew=0.8)
            handles["observations"] = points[0]

        panel.set_ylabel(name)
        panel.margins(x=0.01)
        panel.spines[["top", "right"]].set_visible(False)
        if i == 0 or i in observations:
            labels = handles if i == 0 else {"observations": handles["observations"]}
            panel.legend(
                labels.values(), labels.keys(), ncols=4, frameon=False, loc="lower left",
                bbox_to_anchor=(0, 1), borderaxespad=0.2, fontsize="small",
            )  # fmt: skip

    panels[-1].set_xlabel("time")
    if title:
        figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    image = io.BytesIO()
    figure.savefig(image, format=Path(path).suffix.removeprefix(".") or "png")
    atomic_write(path, image.getvalue())
